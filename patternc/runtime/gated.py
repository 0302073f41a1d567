"""The callable of a pattern that is `gated(...)`: an attention for every branch, and the sum of their outputs with gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from patternc.combine import gated
from patternc.diagnostics import suggest
from patternc.pattern import Pattern
from patternc.runtime.attention import Attention
from patternc.scorers import LOG_SUM_EXPS, ScoreInput


@dataclass(frozen=True, repr=False)
class Gated(Attention):
    """Several attentions with a softmax each, for one layer: call it like `Attention`, and give it a gate for each branch.

    Attributes:
        branches: the attention of each branch, by name.
    """

    branches: dict[str, Attention] = field(init=False, repr=False, compare=False)
    _taken: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    _lent: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = {name: self.pattern.branch(name) for name in self.pattern.branches}
        object.__setattr__(self, "branches", {name: Attention(one, self.backend) for name, one in parts.items()})
        object.__setattr__(self, "_taken", {name: one.arguments for name, one in parts.items()})
        object.__setattr__(self, "_names", tuple(dict.fromkeys(key for names in self._taken.values() for key in names)))
        if taken := sorted({"gates", "kv"} & set(self._names)):
            raise ValueError(f"'{taken[0]}' is an argument of the call, and cannot be a runtime input of a gated pattern")
        object.__setattr__(self, "_lent", _lent(parts))

    def __call__(  # type: ignore[override]  # there is no log-sum-exp of a sum of several softmaxes
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        gates: Mapping[str, Tensor] | None = None,
        kv: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        scale: float | None = None,
        return_lse: bool = False,
        sink_logit: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """out = sum over branches c of gates[c] * O_c, where O_c is the attention of branch c (see `Attention`).

        This is the gated sum of Native Sparse Attention (NSA, Yuan et al. 2025, arXiv:2502.11089, equation 5).

        Args:
            q: (B, H, Nq, D), as for `Attention`.
            k: (B, Hkv, Nk, D), of the branches that have no keys of their own; v: (B, Hkv, Nk, Dv).
            gates: a gate for each branch by name, (B, H, Nq) each, of any floating dtype. They are used as they are: NSA's
                are sigmoids of the query's features.
            kv: keys and values of their own for some branches by name; as many positions as the branch's pattern speaks of.
                `patternc.compression.at_ends` puts compressed keys where a pattern can read them.
            scale: the factor on the scores of all branches, 1 / sqrt(D) by default.
            return_lse, sink_logit: of one softmax, and refused here; call ``branches[name]`` with them.
            inputs: the runtime inputs of all branches by name. If a scorer takes a log-sum-exp called ``NAME_lse``, and it is
                not given, it is that of branch NAME.

        Returns:
            (B, H, Nq, Dv) in q's dtype, summed in float32; differentiable in q, k, v, kv and gates. A branch without keys for
            a query adds 0.

        Raises:
            ValueError: a gate is missing, or for no branch, or shapes, devices or runtime inputs do not fit.
            TypeError: wrong types or dtypes, or a runtime input that no branch has.
        """
        if return_lse or sink_logit is not None:
            what, one = "log-sum-exp" if return_lse else "sink", next(iter(self.branches))
            raise ValueError(f"a sum of several softmaxes has no {what}; call one of them, as in attend.branches['{one}'](...)")
        given = self._inputs({**dict.fromkeys(self._lent), **inputs})
        for what, named in (("gates", gates or {}), ("kv", kv or {})):
            for name in named:
                if name not in self.branches:
                    hint = suggest(name, self.branches) or f"the branches are {', '.join(self.branches)}"
                    raise ValueError(f"{what} has '{name}', and there is no such branch; {hint}")
        if missing := [name for name in self.branches if name not in (gates or {})]:
            raise ValueError(f"every branch needs a gate: pass gates={{{', '.join(f'{name!r}: ...' for name in missing)}}}")
        assert gates is not None
        outputs = {}
        for name, attend in self.branches.items():
            own_k, own_v = (kv or {}).get(name, (k, v))
            mine, lends = {key: given[key] for key in self._taken[name]}, _lse_of(name)
            if lends in self._lent and given[lends] is None:
                outputs[name], lse = attend(q, own_k, own_v, scale=scale, return_lse=True, **mine)
                given[lends] = lse.detach()
            else:
                outputs[name] = attend(q, own_k, own_v, scale=scale, **mine)
        return gated(outputs, gates)


def _lse_of(branch: str) -> str:
    return f"{branch}_lse"


def _lent(branches: Mapping[str, Pattern]) -> frozenset[str]:
    """The log-sum-exps of branches that later ones take.

    Raises:
        ValueError: one takes that of a later branch, or its own.
    """
    found, there = set(), set()
    for name, one in branches.items():
        meanings = (one.meaning(head=head) for head in range(one.heads))
        uses = [use for meaning in meanings for use in meaning.arguments]
        taken = {use.name for use in uses if isinstance(use, ScoreInput) and use.what == LOG_SUM_EXPS}
        for other in branches:
            if _lse_of(other) in taken:
                if other not in there:
                    raise ValueError(f"branch '{name}' takes the log-sum-exp of '{other}', which must stand before it")
                found.add(_lse_of(other))
        there.add(name)
    return frozenset(found)
