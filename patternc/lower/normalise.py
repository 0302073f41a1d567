"""Disjoint parts: every pair of the pattern belongs to exactly one, so that no key is counted twice.

Static relations are made disjoint by exact set difference; what depends on runtime inputs, draws or scores masks out what
an earlier part holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from patternc.lower.plan import Atom, Atoms, Draws
from patternc.relation import Relation
from patternc.scalar import FALSE, TRUE, Scalar, Var, conjunction, disjunction, op, substitute
from patternc.terms import Condition, Document, Filter, Layout, Meaning, Random, Term, TopK


@dataclass(frozen=True)
class Part:
    """A disjoint piece: the pairs of ``relation`` for which ``mask`` (with atoms) holds; picked by ``choices``, if any.

    For choices that need scores, ``mask`` is what may be picked from and ``held`` what earlier parts hold of it.
    """

    relation: Relation
    mask: Scalar
    filters: tuple[Filter, ...]
    choices: tuple[Random | TopK, ...] = ()
    draws: tuple[str, ...] = ()
    held: Scalar = FALSE
    most: int = 0
    """How many keys the choices may pick for a query."""
    rests_on_others: bool = False
    """Whether the mask leaves out pairs of earlier parts that depend on runtime inputs."""


class AtomTable:
    """Names the atoms of one head's plan."""

    def __init__(self) -> None:
        self._names: dict[Atom, str] = {}

    def name(self, atom: Atom) -> str:
        return self._names.setdefault(atom, f"a{len(self._names)}")

    def filter(self, f: Filter) -> Scalar:
        """The condition of a filter; a negated one is the complement of the plain one's atom."""
        plain = Layout(f.name, f.block) if isinstance(f, Layout) else Document(f.name)
        atom = Var(self.name(plain))
        return op("not", atom) if f.negated else atom

    def draws(self, choice: Random, term: Term) -> str:
        return self.name(Draws(choice, term.relation.block_rows(choice.block)))

    @property
    def items(self) -> Atoms:
        return tuple((name, atom) for atom, name in self._names.items())


def disjoint_parts(meaning: Meaning, atoms: AtomTable) -> list[Part]:
    """The parts of a meaning in the order in which they run."""
    parts: list[Part] = []
    static = meaning.static
    held: list[Scalar] = []
    if not static.is_empty():
        parts.append(Part(static, static.predicate, ()))
    for condition in (c for c in meaning.conditions if c.filters):
        rest, mask = _beyond(condition, static, atoms)
        if not rest.is_empty():
            mask = conjunction([mask, *(op("not", h) for h in held)])
            parts.append(Part(rest, mask, condition.filters, rests_on_others=bool(held)))
            held.append(mask)
    picks = sorted(meaning.picks, key=lambda t: any(isinstance(c, TopK) for c in t.choices))
    for term in picks:
        rest = term.relation - static
        if rest.is_empty():
            continue
        randoms = [c for c in term.choices if isinstance(c, Random)]
        draws = tuple(atoms.draws(c, term) for c in randoms)
        own = [Var(name) for name in draws]
        filters = tuple(f for c in term.conditions for f in c.filters)
        allowed = disjunction(allowed_by(c, atoms) for c in term.conditions)
        if len(randoms) < len(term.choices):
            known = disjunction([static.predicate, *held])
            parts.append(Part(rest, conjunction([allowed, *own]), filters, term.choices, draws, known, term.most))
        else:
            beyond = disjunction(_beyond(c, static, atoms)[1] for c in term.conditions)
            mask = conjunction([beyond, *own, *(op("not", h) for h in held)])
            parts.append(Part(rest, mask, filters, term.choices, draws))
            held.append(mask)
    return parts


def allowed_by(condition: Condition, atoms: AtomTable) -> Scalar:
    """The pairs of a condition: its relation, and every filter."""
    return conjunction([condition.relation.predicate, *(atoms.filter(f) for f in condition.filters)])


def _beyond(condition: Condition, static: Relation, atoms: AtomTable) -> tuple[Relation, Scalar]:
    """The condition's pairs that ``static`` does not hold."""
    rest = condition.relation - static
    return rest, conjunction([rest.predicate, *(atoms.filter(f) for f in condition.filters)])


def without(mask: Scalar, atom: str) -> Scalar:
    """The mask where an atom is known to hold."""
    return substitute(mask, {atom: TRUE})
