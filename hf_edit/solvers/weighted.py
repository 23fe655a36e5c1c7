"""Compressing a dense update where it acts: the best few columns for the inputs that the linear map really sees."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_edit.solvers.low_rank import LowRankDelta


def compressed_on(dW: Tensor, inputs: Tensor, rank: int) -> tuple[LowRankDelta, float]:
    """The delta B A of at most `rank` columns that minimises |(dW - B A) X|, Frobenius.

    With U the first left singular vectors of dW X, B = U and A = U^T dW: the outputs are projected, so X is never
    inverted and may be singular, or of fewer columns than rows.

    Args:
        dW: (d_out, d_in)
        inputs: X, (d_in, n); a column counts by its squared length, so scale it by the root of its weight.
        rank: at least 1.

    Returns:
        The delta in float64 and |(dW - B A) X| / |dW X|, 0 where dW X is 0.
    """
    dW = dW.double()
    U, S, _ = torch.linalg.svd(dW @ inputs.double(), full_matrices=False)
    total = float(S.square().sum())
    error = (float(S[rank:].square().sum()) / total) ** 0.5 if total > 0 else 0.0
    B = U[:, :rank]
    return LowRankDelta(B, B.T @ dW), error
