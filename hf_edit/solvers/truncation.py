"""Fewer columns for a low-rank update, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import penalty


RIDGE = 1e-4
"""Added to C's diagonal, relative to its mean eigenvalue: a second moment of few tokens may be singular."""


@dataclass(frozen=True)
class TruncationError:
    """What is lost, relative to the whole: of the weights, |dW - dW'| in Frobenius norm; and of what inputs with the
    second moment C see of them, tr((dW - dW') C (dW - dW')^T)^1/2, if C is known."""

    weights: float
    outputs: float | None


def truncated(delta: LowRankDelta, rank: int, C: Tensor | None = None) -> tuple[LowRankDelta, TruncationError]:
    """The best approximation of at most `rank` columns: of the outputs if C is known, else of the weights.

    Args:
        C: (d_in, d_in), second moment of the inputs that count.
    """
    if C is None:
        smaller, error = delta.compressed(rank)
        return smaller, TruncationError(error, None)
    whole = delta.to(torch.float64, C.device)
    L = penalty(C, 1.0, RIDGE).factor
    kept, outputs = LowRankDelta(whole.B, whole.A @ L).compressed(rank)
    smaller = LowRankDelta(kept.B, torch.linalg.solve_triangular(L, kept.A, upper=False, left=False))
    weights = whole.minus(smaller).norm() / whole.norm() if whole.norm() > 0 else 0.0
    return smaller.to(delta.B.dtype, delta.B.device), TruncationError(weights, outputs)
