"""What the `assert` lines of a program claim: each is one guarantee about closed expressions, for every n or at one.

The form of a claim says what it is: a word alone is a property (`causal(a)`), a comparison with a number bounds a measure
(`hops(a) <= 2`), and a comparison of two patterns is about their pairs (`a <= b`). Without an argument a word speaks of
the program's own expression. What the words mean is for `patternc.analysis.guarantees` to know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from patternc.diagnostics import PatternError, suggest
from patternc.language.elaborate import _constant
from patternc.language.primitives import PRIMITIVES
from patternc.language.resolve import MIXTURES, Inliner, check_keyword, inliner, walk
from patternc.language.syntax import Assert, Call, Chain, Expression, Name, Program

PROPERTIES = ("causal", "nonempty", "self_loops", "universal", "hub", "hamiltonian")
MEASURES = ("hops", "coverage")
BOUNDS = ("<=", "<", "==", ">=", ">")
INCLUSIONS = ("<=", "==", ">=")
SUBSET, EQUAL = "subset", "equal"

_Side: TypeAlias = tuple[Expression, Expression]
"""A side of a comparison, as it is written and written out."""
_SIGNS = {*BOUNDS, "!="}
_FORMS = "such as causal(a), hops(a) <= 2 or a <= b"


@dataclass(frozen=True)
class Claim:
    """A guarantee that a pattern is to have: a property, a bound on a measure, or how its pairs relate to another's.

    Attributes:
        guarantee: one of `PROPERTIES` or `MEASURES`, or `SUBSET` or `EQUAL`.
        subject: the pattern, written out.
        name: the name that the subject was given, if it was one.
        n: the sequence length that it is for; None for all.
        operator: of a measure, how it compares with ``limit``: one of `BOUNDS`.
        other: the pattern that an inclusion compares with, written out.
        line: where a program says so; None where nothing was written.
    """

    guarantee: str
    subject: Expression
    name: str | None = None
    n: int | None = None
    operator: str = ""
    limit: int = 0
    other: Expression | None = None
    line: Assert | None = field(default=None, compare=False)

    def speaks_of(self, name: str) -> bool:
        """Whether a line says this, and uses the name."""
        return self.line is not None and any(isinstance(node, Name) and node.name == name for node in walk(self.line.claim))


def claims(program: Program) -> tuple[Claim, ...]:
    """What a program asserts, in the order of its lines. Its patterns are not elaborated.

    Raises:
        PatternError: a line is not a claim, or has an unknown word; there is no pattern to speak of; or the asserts
            together are too large when definitions are written out.
    """
    if not program.asserts:
        return ()
    reader = _Reader(program.body, inliner(program))
    return tuple(reader.claim(line) for line in program.asserts)


@dataclass(frozen=True)
class _Reader:
    body: Expression | None
    definitions: Inliner

    def claim(self, line: Assert) -> Claim:
        n = None if line.at is None else line.at.value
        if line.at is not None and n == 0:
            raise PatternError("not-positive", "a sequence has at least one position", line.at.span)
        match line.claim:
            case Chain((left, right), (operator,)) if operator in _SIGNS:
                closed = self.definitions.inlined(right)
                limit = _constant(closed)
                if limit is None:
                    return self._inclusion(line, (left, self.definitions.inlined(left)), operator, (right, closed), n)
                self._check_measure(left, operator, limit)
                return Claim(_word(left), *self._subject(left), n, operator, limit, line=line)
            case Chain(_, (operator, _, *_)) if operator in _SIGNS:
                raise _no_claim(line.claim, "an assert makes one comparison", "write an assert for each")
            case Chain(_, (("and" | "or"), *_)):
                raise _no_claim(line.claim, "an assert makes one claim", "write an assert for each")
            case Name() | Call():
                self._check_property(line.claim)
                return Claim(_word(line.claim), *self._subject(line.claim), n, line=line)
        raise _no_claim(line.claim, "a claim was expected", _FORMS)

    def _inclusion(self, line: Assert, left: _Side, operator: str, right: _Side, n: int | None) -> Claim:
        word = _word(left[0])
        if word in MEASURES and not self._is_pattern(left[0]):
            raise _no_claim(right[0], f"'{word}' is compared with a number", f"as in {word} <= 2")
        if _constant(left[1]) is not None:
            raise _no_claim(left[0], "the number stands on the right", "as in hops <= 2")
        if operator not in INCLUSIONS:
            hint = "a <= b says that every pair of a is one of b, a == b that the pairs are the same"
            raise _no_claim(line.claim, f"'{operator}' does not compare patterns", hint)
        (written, subject), (_, other) = (right, left) if operator == ">=" else (left, right)
        return Claim(EQUAL if operator == "==" else SUBSET, subject, self._name(written), n, other=other, line=line)

    def _check_measure(self, node: Expression, operator: str, limit: int) -> None:
        word = _word(node)
        if word in MEASURES:
            if operator not in BOUNDS:
                raise _no_claim(node, f"'{operator}' does not bound a number", "compare with <, <=, ==, >= or >")
            return
        if word in PROPERTIES:
            raise _no_claim(node, f"'{word}' is true or false, not a number", f"it stands alone, as in assert {word}(a)")
        hint = f"the measures are {_listed(MEASURES)}"
        if self._is_pattern(node) or not word:
            raise _no_claim(node, f"a measure was expected, to compare with {limit}", hint)
        raise PatternError("unknown-name", f"unknown measure '{word}'", node.span, suggest(word, MEASURES) or hint)

    def _check_property(self, node: Expression) -> None:
        word = _word(node)
        if word in PROPERTIES:
            return
        if word in MEASURES:
            raise _no_claim(node, f"'{word}' is a number, and a claim was expected", f"compare it, as in {word} <= 2")
        if self._is_pattern(node):
            hint = "compare it with a pattern, as in a <= b, or claim a property of it, as in causal(a)"
            raise _no_claim(node, f"'{word}' is a pattern, and a claim was expected", hint)
        hint = suggest(word, (*PROPERTIES, *MEASURES)) or f"the properties are {_listed(PROPERTIES)}"
        raise PatternError("unknown-name", f"unknown property '{word}'", node.span, hint)

    def _subject(self, node: Expression) -> tuple[Expression, str | None]:
        """What a property or a measure speaks of."""
        match node:
            case Call(function, arguments, keywords):
                for keyword in keywords:
                    check_keyword(function, keyword.name, [], {}, keyword.span)
                if len(arguments) > 1:
                    message = f"'{function}' is about one pattern, and this is one more"
                    raise PatternError("too-many-arguments", message, arguments[1].span, "write an assert for each")
                if arguments:
                    return self.definitions.inlined(arguments[0]), self._name(arguments[0])
        if self.body is None:
            message = f"'{_word(node)}' speaks of the program's expression, and there is none"
            raise PatternError("no-expression", message, node.span, f"say of which pattern: {_word(node)}(a)")
        return self.definitions.inlined(self.body), None

    def _name(self, node: Expression) -> str | None:
        return node.name if isinstance(node, Name) and self._is_defined(node) else None

    def _is_pattern(self, node: Expression) -> bool:
        return _word(node) in {*PRIMITIVES, "where", *MIXTURES} or self._is_defined(node)

    def _is_defined(self, node: Expression) -> bool:
        """Whether it is a name that the program or the presets define."""
        return self.definitions.defines(_word(node))


def _word(node: Expression) -> str:
    """The word that a claim or a side of it may consist of; "" where it is something else."""
    match node:
        case Name(word) | Call(word):
            return word
    return ""


def _no_claim(node: Expression, message: str, hint: str) -> PatternError:
    return PatternError("wrong-type", message, node.span, hint)


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
