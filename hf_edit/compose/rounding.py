"""`W + B A` in the dtype of W: how it is rounded, and how much of `B A` survives that.

A weight of bfloat16 has 8 significant bits, so `nearest` loses every change of less than 1/512 of its weight.
`compensated` rounds each weight to the one of its two neighbours that cancels what the weights before it in the row
have gathered of error where the delta acts, the span of A's rows. So nearly all of the delta is there for the inputs
that it was made for; the price is more noise for all others, about as much as rounding the base itself to that dtype
makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_edit.compose.bits import neighbour
from hf_edit.solvers.low_rank import LowRankDelta


Rounding = Literal["nearest", "compensated"]
ROUNDINGS = get_args(Rounding)

_BLOCK = 1 << 22  # weights in float64 at a time: 32 MiB
_SAMPLED_ROWS = 256


@dataclass(frozen=True)
class MergeLoss:
    """What rounding does to a delta. Sums of squares, so that the losses of several weights add up.

    Args:
        weight: |W|^2
        delta: |dW|^2
        kept: <R - W, dW>, with R the rounded sum.
        missed: |R - W - dW|^2
        missed_in_span: the same of what inputs in the span of A's rows see, in which all of dW acts.
    """

    weight: float
    delta: float
    kept: float
    missed: float
    missed_in_span: float

    @property
    def size(self) -> float:
        """|dW| / |W|; 0 where W is zero, as JSON has no infinity."""
        return (self.delta / self.weight) ** 0.5 if self.weight else 0.0

    @property
    def survival(self) -> float:
        """Share of the delta that is there after rounding: 1 is all."""
        return self.kept / self.delta if self.delta else 1.0

    @property
    def error(self) -> float:
        """|R - W - dW| / |dW|"""
        return (self.missed / self.delta) ** 0.5 if self.delta else 0.0

    @property
    def span_error(self) -> float:
        """The same of what the delta's own inputs see."""
        return (self.missed_in_span / self.delta) ** 0.5 if self.delta else 0.0

    def __add__(self, other: MergeLoss) -> MergeLoss:
        return MergeLoss(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @classmethod
    def total(cls, losses: Iterable[MergeLoss]) -> MergeLoss:
        """The loss of several weights together."""
        return sum(losses, cls(0.0, 0.0, 0.0, 0.0, 0.0))

    def to_json(self) -> dict[str, float]:
        """The shares, without the sums."""
        return {name: getattr(self, name) for name in ("size", "survival", "error", "span_error")}


class Merging:
    """The sum of a weight and a delta, rounded once from float64, block of rows by block of rows.

    Everything is computed on the CPU, so that it does not depend on where the model is.

    Args:
        weight: (d_out, d_in), only read.
        delta: of that shape.
    """

    def __init__(self, weight: Tensor, delta: LowRankDelta, rounding: Rounding) -> None:
        self._weight = weight.detach()
        self._delta = delta.to(torch.float64, "cpu")
        self._rounding = rounding
        self._basis = _row_space(self._delta.A)  # (p, d_in)

    def rounded(self) -> tuple[Tensor, MergeLoss]:
        """The rounded sum, (d_out, d_in) in the weight's dtype on the CPU, and what was lost."""
        blocks = [self._rows(rows) for rows in self._blocks()]
        sums = torch.cat([sums for _, sums in blocks]).sum(dim=0)
        return torch.cat([values for values, _ in blocks]), MergeLoss(*sums.tolist())

    def predicted(self) -> MergeLoss:
        """The loss from a sample of at most 256 rows.

        Rows are rounded independently of each other, and how much one loses depends on the size of its change beside
        that of its weights. So rows are sorted by that and drawn at equal steps of what is to be estimated: once for
        the change, once for the error, which is about the same in all rows.
        """
        B, A = self._delta.B, self._delta.A
        delta = ((B @ (A @ A.T)) * B).sum(dim=1).clamp_min(0)  # (d_out,) |dW_i|^2
        weight = torch.cat([self._weight[rows].cpu().double().square().sum(dim=1) for rows in self._blocks()])
        if not delta.any():
            return MergeLoss(float(weight.sum()), 0.0, 0.0, 0.0, 0.0)
        if len(delta) <= _SAMPLED_ROWS:
            return MergeLoss(*self._rows(torch.arange(len(delta)))[1].sum(dim=0).tolist())
        order = torch.argsort(delta / weight.clamp_min(torch.finfo(torch.float64).tiny))
        chance = (delta / delta.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1 / len(delta)) / 2
        reached = chance[order].cumsum(0)
        wanted = (torch.arange(_SAMPLED_ROWS, dtype=torch.float64) + 0.5) * reached[-1] / _SAMPLED_ROWS
        rows = order[torch.searchsorted(reached, wanted)]
        sums = self._rows(rows)[1] / (_SAMPLED_ROWS * chance[rows, None])
        sums = sums.sum(dim=0)
        # the first two are known: what is estimated are shares of them
        return MergeLoss(float(weight.sum()), float(delta.sum()), *(sums[2:] * (delta.sum() / sums[1])).tolist())

    def _blocks(self) -> Iterator[slice]:
        d_out, d_in = self._weight.shape
        height = max(1, _BLOCK // d_in)
        return (slice(start, start + height) for start in range(0, d_out, height))

    def _rows(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """These rows rounded, (n, d_in), and per row the sums of `MergeLoss`, (n, 5)."""
        weight = self._weight[rows].cpu()
        change = self._delta.B[rows] @ self._delta.A
        exact = weight.double() + change
        values = exact.to(weight.dtype)
        if self._rounding == "compensated":
            values = _compensated(exact, values, self._basis)
        error = values.double() - exact
        kept = ((change + error) * change).sum(dim=1)
        squares = [tensor.square().sum(dim=1) for tensor in (weight.double(), change, error, error @ self._basis.T)]
        return values, torch.stack([squares[0], squares[1], kept, squares[2], squares[3]], dim=1)


def _row_space(A: Tensor) -> Tensor:
    """Orthonormal rows that span those of A."""
    _, sizes, rows = torch.linalg.svd(A, full_matrices=False)
    return rows[sizes > sizes[:1] * max(A.shape) * torch.finfo(A.dtype).eps]


def _compensated(exact: Tensor, nearest: Tensor, basis: Tensor) -> Tensor:
    """Each row of `exact` on the grid of the dtype of `nearest`, so that its errors cancel in the span of the basis.

    Weight by weight, those on which the span depends most first, so that the last corrections are the finest. Each
    goes to the neighbour that leaves the smaller gathered error e Q^T, with e the row's errors so far.

    Args:
        exact: (n, d_in), float64.
        nearest: (n, d_in), the nearest values.
        basis: (p, d_in), orthonormal rows Q.
    """
    near = nearest.double() - exact
    other_values = neighbour(nearest, -near)
    other = other_values.double() - exact
    gathered = exact.new_zeros(len(exact), len(basis))  # (n, p)
    flipped = torch.zeros_like(nearest, dtype=torch.bool)
    lengths = basis.square().sum(dim=0)  # (d_in,)
    for column in torch.argsort(lengths, descending=True).tolist():
        if lengths[column] == 0:
            break
        q = basis[:, column]
        wanted = -(gathered @ q) / lengths[column]  # the error of this weight that would cancel most
        flip = (other[:, column] - wanted).abs() < (near[:, column] - wanted).abs()
        flipped[:, column] = flip
        gathered += torch.where(flip, other[:, column], near[:, column])[:, None] * q
    return torch.where(flipped, other_values, nearest)
