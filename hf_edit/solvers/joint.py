"""One update that does what several were to do: least squares over the keys and values of all edits.

    dW = argmin  sum_i w_i |dW K_i - V_i|^2 + lambda tr(dW C dW^T)
       = (sum_i w_i V_i K_i^T) (lambda C + sum_i w_i K_i K_i^T)^-1

An edit enters through two sums and nothing else, which is why neither the order of edits nor their grouping matters,
and why leaving one out takes it back. (The idea is RegMean's, arXiv 2212.09849, with the edits' own texts as data.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.low_rank import LowRankDelta


NEGLIGIBLE = 1e-14
"""Directions with less than this share of the largest one's energy are rounding."""


class JointSolve:
    """The sums of one linear map, in float64.

    Args:
        C: (d_in, d_in), the second moment of what must not change.
        ridge: added to C's diagonal, relative to its mean eigenvalue.
    """

    def __init__(self, d_out: int, C: Tensor, ridge: float) -> None:
        C = C.double()
        self._C = (C + C.T) / 2
        self._C.diagonal().add_(ridge * C.diagonal().mean())
        self._gram = torch.zeros_like(self._C)  # K K^T
        self._cross = C.new_zeros(d_out, C.shape[0])  # V K^T

    def add(self, keys: Tensor, values: Tensor, weights: Tensor | float = 1.0) -> None:
        """Ask for outputs (n, d_out) at keys (n, d_in), each token's square of what is missed times its weight.

        Args:
            weights: (n,), or one for all.
        """
        K = keys.to(self._gram)
        weighted = K * torch.as_tensor(weights).to(K).reshape(-1, 1)
        self._gram.addmm_(K.T, weighted)
        self._cross.addmm_(values.to(self._cross).T, weighted)

    def solve(self, weight: float, rank: int) -> tuple[LowRankDelta, float]:
        """The update with at most `rank` columns, in float64, and what the bound on the rank cost.

        Of all updates of that rank it is the one nearest to the unbounded solution in the metric of the solve, which
        counts what is moved at the edits' keys and elsewhere: B spans the leading outputs, A = B^T dW.

        Args:
            weight: lambda.

        Returns:
            The factors, and the relative distance to the unbounded solution in that metric.

        Raises:
            ComputationError: the sums are not finite or not positive definite.
        """
        L, failed = torch.linalg.cholesky_ex(self._gram + weight * self._C)
        if failed or not torch.isfinite(L).all():
            raise ComputationError(
                f"The joint solve of width {len(L)} is not positive definite.",
                "Raise the ridge, or collect statistics from more tokens.",
            )
        half = torch.linalg.solve_triangular(L, self._cross.T, upper=False)  # L^-1 (V K^T)^T = (dW L)^T, (d_in, d_out)
        values, U = torch.linalg.eigh(half.T @ half)  # dW L L^T dW^T
        energy, U = values.clamp_min(0).flip(0), U.flip(1)
        total, keep = float(energy.sum()), min(rank, int((energy > NEGLIGIBLE * energy[0]).sum()))
        error = (float(energy[keep:].sum()) / total) ** 0.5 if total > 0 else 0.0
        kept = U[:, :keep]
        dW = torch.linalg.solve_triangular(L.T, half, upper=True).T  # (d_out, d_in)
        return LowRankDelta(kept, kept.T @ dW), error
