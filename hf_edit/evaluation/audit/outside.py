"""Directions of an update that no listed edit explains.

Every method that trains or solves on keys leaves an update whose rows, in coordinates whitened by the second moment
C of what must not change, lie in the span of the whitened keys of the texts it was taught: polish takes them from
there, and a ridge solve R K^T (C + K K^T)^-1 cannot leave it. So with C = L L^T, the row space of dW L is compared
with the span of L^-1 K over the keys K of the listed texts. What an unlisted text taught points out of that span.

The comparison is by principal angles. With the very C of the update all angles of an honest pack are zero; with the
C of other settings all of them open, and nothing can be told. The best-explained directions show which it is, as an
unlisted text opens few of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.solvers.key_basis import Keys
from hf_edit.solvers.low_rank import LowRankDelta


NEGLIGIBLE = 1e-4
"""Directions with less than this share of the update's size are rounding (of bf16 factors: 1e-5) or teach nothing."""
AGREEING = 0.1
"""Up to here the best-explained tenth may lie outside for C to pass for the update's own.

On SmolLM2: 1e-15 with C as it was; .006 with the part that strangers add left out, .03 with that of another list; .15
with C of other settings; .29 with the identity.
"""
AGREEING_ABOVE = 0.02
"""The same where keys depend on what the blocks below were changed to, which is known but roughly: there the best
tenth can agree while others do not."""
UNLISTED, UNLISTED_AT_MOST = 0.02, 0.4
"""From here on a direction lies outside, with C in full agreement and at most. On SmolLM2 honest packs reach 1e-12
with C as it was (5e-5 in bf16) and .25 with a part of C left out; with one of eleven edits unlisted .78 or more."""
UNLISTED_AMONG_MANY = 0.2
"""The same where the listed keys fill half of all directions: .1 honest, .32 or more with one unlisted."""
FEW_ENOUGH = 0.5
"""Directions that an update may have, for each that is explained, where the listed keys fill half of all. On SmolLM2
eight long edits have a third; an honest update of as many as are explained lies up to 100 % outside of them."""
SLOPE = 100.0
"""How fast the limit rises as the best-explained tenth moves outside."""


@dataclass(frozen=True)
class Outside:
    """How much of one update lies outside of what the listed edits explain.

    Args:
        share: of its size tr(dW C dW^T).
        best: squared sine of the angle that a tenth of its directions stay below.
        largest: the largest such square.
        size: share of the update's size in the direction of the largest.
        rank: its directions.
        explained: directions of the listed keys that it was held against.
        many: the listed keys fill half of all directions, and only the strongest were taken for explained.
        above: blocks below it are changed too.
    """

    share: float
    best: float
    largest: float
    size: float
    rank: int
    explained: int
    many: bool
    above: bool

    @property
    def told(self) -> bool:
        """Whether the second moment passes for the update's own, and the directions are few enough.

        Where only the strongest directions of the keys were taken for explained, an update of about as many directions
        honestly uses others too.
        """
        if self.many and self.rank > FEW_ENOUGH * self.explained:
            return False
        return self.best <= (AGREEING_ABOVE if self.above else AGREEING)

    @property
    def flagged(self) -> bool:
        """Whether something is taught that no listed edit explains."""
        least = UNLISTED_AMONG_MANY if self.many else UNLISTED
        return self.told and self.largest >= min(least + SLOPE * self.best, UNLISTED_AT_MOST)


def outside(delta: LowRankDelta, asked: Keys | None, along: Keys, factor: Tensor, above: bool) -> Outside:
    """Compare an update with the listed keys.

    Args:
        asked: the keys at which the listed edits' source says that values were asked.
        along: the keys of all tokens of the listed edits.
        factor: L, (d_in, d_in), the Cholesky factor of C.
        above: blocks below the linear are changed too.

    Half of all directions at most are taken for explained, those of `asked` first and then the strongest: long texts
    have keys in every direction, and would explain anything.
    """
    half = factor.shape[0] // 2
    none = factor.new_zeros(factor.shape[0], 0)
    first = asked.leading(factor, none)[:, :half] if asked else none
    rest = along.leading(factor, first)[:, : half - first.shape[1]]
    explained = torch.cat([first, rest], dim=1)  # (d_in, m), orthonormal

    delta = delta.to(torch.float64, factor.device)
    Q, R = torch.linalg.qr((delta.A @ factor).T)  # (d_in, r), (r, r)
    _, S, Vh = torch.linalg.svd(torch.linalg.qr(delta.B)[1] @ R.T, full_matrices=False)
    sizes = S.square() / S.square().sum()
    kept = sizes > NEGLIGIBLE
    V = Q @ Vh[kept].T  # (d_in, s), principal directions of dW L
    beyond = V - explained @ (explained.T @ V)
    _, sines, Wh = torch.linalg.svd(beyond, full_matrices=False)
    squared = sines.square().clamp_max(1)
    return Outside(
        share=float((beyond.square().sum(dim=0) * sizes[kept]).sum()),
        best=float(squared.quantile(0.1)),
        largest=float(squared[0]),
        size=float((Wh[0].square() * sizes[kept]).sum()),
        rank=int(kept.sum()),
        explained=explained.shape[1],
        many=explained.shape[1] == half,
        above=above,
    )
