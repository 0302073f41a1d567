"""The reference backend: dense masks straight from the pattern's terms, nothing lowered. Slow, and easy to check by eye."""

from __future__ import annotations

from patternc.backend import Request
from patternc.lower.cost import TileCost
from patternc.lower.normalise import AtomTable, allowed_by
from patternc.lower.plan import HeadPlan, Plan, Tile
from patternc.pattern import parse
from patternc.scalar import Scalar, Var, conjunction, disjunction
from patternc.terms import Meaning, Random, Term, TopK

from .assemble import SAMPLER, SCORERS, PythonNames, header, inputs, verbatim

DTYPES = ("float16", "bfloat16", "float32", "float64")
MAX_LENGTH = 16_384


class ReferenceBackend:
    """Any device, short sequences: the oracle that the other backends are tested against."""

    name = "reference"
    rank = 0
    differentiable = True
    views = False
    splits = False

    def unsupported(self, request: Request) -> list[str]:
        reasons = [] if request.dtype in DTYPES else [f"dtype {request.dtype} is not one of {', '.join(DTYPES)}"]
        if request.length > MAX_LENGTH:
            reasons.append(f"{request.length} keys are over {MAX_LENGTH}: its mask is dense")
        return reasons

    def query_tile(self, request: Request) -> Tile | None:  # noqa: ARG002
        return None

    def key_tile(self, request: Request) -> Tile | None:  # noqa: ARG002
        return None

    def refused(self, plan: Plan, request: Request) -> list[str]:  # noqa: ARG002
        return []

    def tiles(self, request: Request) -> tuple[TileCost, ...]:  # noqa: ARG002
        return (TileCost(Tile(128, 128), 1, 1, 1),)

    def joint_tile(self, request: Request) -> Tile | None:  # noqa: ARG002
        return None

    def emit(self, plan: Plan) -> str:
        pattern = parse(plan.pattern)
        functions: list[str] = []
        rows: list[str] = []
        draws = selects = False
        for index, group in enumerate(group for group in plan.heads if not group.chained):
            meaning = pattern.meaning(head=group.heads[0])
            selects |= any(_scored(term) for term in meaning.terms)
            draws |= any(isinstance(choice, Random) for term in meaning.picks for choice in term.choices)
            functions += _group(index, group, meaning)
            rows.append(f"    ({group.runs!r}, {group.period}, mask_g{index}),\n")
        parts = [
            f"{header(plan, self.name)}\n\nfrom collections.abc import Callable\nfrom typing import Any\n\nimport torch\n\n"
            f"{inputs(plan)}",
            verbatim("patternc.runtime", "support.py"),
            *(SCORERS if selects else ()),
            *([verbatim("patternc", "random_edges.py", SAMPLER)] if draws else []),
            verbatim("patternc.backends", "reference_kernel.py"),
            *functions,
            f"MASKS = (\n{''.join(rows)})",
        ]
        return "\n\n\n".join(parts) + "\n"


def _group(index: int, group: HeadPlan, meaning: Meaning) -> list[str]:
    """The atoms of a group of heads and its mask function: the union of its terms."""
    atoms = AtomTable()
    terms = [_term(i, index, term, atoms) for i, term in enumerate(meaning.terms)]
    names = PythonNames(index, HeadPlan(group.heads, group.period, atoms.items, (), ()))
    conditions = [names.condition(f"allowed_{i}_g{index}", allowed) for i, (allowed, _) in enumerate(terms)]
    for i, term in enumerate(meaning.terms):
        for j, choice in enumerate(_scored(term)):
            conditions.append(names.condition(f"forced_{i}_{j}_g{index}", choice.force.predicate))
    lines = [
        f"def mask_g{index}(s, q, k):",
        "    shape = s.batch.numel(), s.head.numel(), q.shape[0], k.shape[1]",
        "    held = torch.zeros(shape, dtype=torch.bool, device=q.device)",
        *(line for _, body in terms for line in body),
        "    return held",
    ]
    return [*names.atoms(), *conditions, "\n".join(lines)]


def _term(i: int, index: int, term: Term, atoms: AtomTable) -> tuple[Scalar, list[str]]:
    """What a term's choices may pick (all of it, without choices), and the lines that add the term to the mask."""
    draws = [Var(atoms.draws(c, term)) for c in term.choices if isinstance(c, Random)]
    allowed = conjunction([disjunction(allowed_by(c, atoms) for c in term.conditions), *draws])
    picks = ""
    for j, c in enumerate(_scored(term)):
        picks += f" & best(s, {c.scorer!r}, {c.k}, {c.block}, {c.share!r}, forced_{i}_{j}_g{index}(s, q, k), may)"
    return allowed, [f"    may = allowed_{i}_g{index}(s, q, k).expand(shape)  # {term}", f"    held = held | may{picks}"]


def _scored(term: Term) -> list[TopK]:
    return [choice for choice in term.choices if isinstance(choice, TopK)]


BACKEND = ReferenceBackend()
