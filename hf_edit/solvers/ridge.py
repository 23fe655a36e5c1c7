"""Closed-form updates of one linear map: ridge least squares against what must not change.

Columns are tokens: keys K (d_in, n), preserved keys K_p (d_in, m), residuals R (d_out, n). The update

    dW = argmin  |dW K - R|^2 + |dW K_p|^2 + tr(dW G dW^T)  =  R K^T (G + K K^T + K_p K_p^T)^-1        (MEMIT, eq. 14;
                                                                                            AnyEdit, eq. 19)
has rank n, and is returned as its factors B = R and A = K^T (...)^-1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.low_rank import LowRankDelta


@dataclass(frozen=True, eq=False)
class Penalty:
    """The quadratic penalty tr(dW G dW^T), G = weight * C, by the Cholesky factor of C.

    Args:
        factor: (d_in, d_in) lower triangular, C = factor @ factor^T.
        weight: lambda.
    """

    factor: Tensor
    weight: float

    def solve(self, X: Tensor) -> Tensor:
        """G^-1 X for X (d_in, n)."""
        return torch.cholesky_solve(X, self.factor) / self.weight

    def matrix(self) -> Tensor:
        """G, (d_in, d_in)."""
        return self.weight * (self.factor @ self.factor.T)


def penalty(C: Tensor, weight: float, ridge: float) -> Penalty:
    """The penalty of `weight` times C plus `ridge` times C's mean eigenvalue on the diagonal, in float64.

    Args:
        C: (d_in, d_in), symmetric positive semi-definite; a second moment of few tokens may be singular.
        weight: lambda > 0.
        ridge: relative to tr(C) / d_in.

    Raises:
        ComputationError: C is not finite or has no positive definite neighbour at this ridge.
    """
    C = C.double()
    C = (C + C.T) / 2
    mean_eigenvalue = C.diagonal().mean()
    ridged = C + ridge * mean_eigenvalue * torch.eye(C.shape[0], dtype=C.dtype, device=C.device)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    if failed or not torch.isfinite(factor).all():
        raise ComputationError(
            f"A second moment of width {C.shape[0]} (mean eigenvalue {mean_eigenvalue:.3g}) is not positive definite "
            f"with ridge {ridge:g}.",
            "Collect statistics from more tokens, or raise the ridge.",
        )
    return Penalty(factor, weight)


def ridge_update(keys: Tensor, residuals: Tensor, preserved: Tensor, penalty: Penalty) -> LowRankDelta:
    """The update that moves the outputs at `keys` by `residuals` and keeps them at `preserved`.

    Works in the space of the tokens (Woodbury) while they are fewer than the inputs, else in the space of the inputs.

    Args:
        keys: K, (d_in, n)
        residuals: R, (d_out, n)
        preserved: K_p, (d_in, m), m may be 0
        penalty: G

    Returns:
        B = R and A = K^T (G + K K^T + K_p K_p^T)^-1, in float64.
    """
    K, R = keys.double(), residuals.double()
    X = torch.cat([K, preserved.double()], dim=1)  # (d_in, T)
    d_in, T = X.shape
    if d_in <= T:
        A = torch.linalg.solve(penalty.matrix() + X @ X.T, K).T
        return LowRankDelta(R, A)
    Y = penalty.solve(X)  # G^-1 X
    inner = torch.eye(T, dtype=X.dtype, device=X.device) + X.T @ Y  # I + S
    # (G + X X^T)^-1 X = Y (I + S)^-1: the rows that belong to the keys
    A = torch.linalg.solve(inner, Y.T)[: K.shape[1]]
    return LowRankDelta(R, A)
