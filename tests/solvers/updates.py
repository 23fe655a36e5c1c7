"""Updates of keys and residuals that are given at once."""

from __future__ import annotations

from torch import Tensor

from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.null_space import null_space_solve
from hf_edit.solvers.ridge import Columns, QuadraticPenalty


def ridge_update(keys: Tensor, residuals: Tensor, preserved: Tensor, penalty: QuadraticPenalty) -> LowRankDelta:
    """The update that moves the outputs at `keys` by `residuals` and keeps them at `preserved`.

    Args:
        keys: K, (d_in, n)
        residuals: R, (d_out, n)
        preserved: K_p, (d_in, m), m may be 0
        penalty: G

    Returns:
        B = R and A = K^T (G + K K^T + K_p K_p^T)^-1, in float64; for n > min(d_out, d_in) a product of that rank.
    """
    columns = Columns(residuals.shape[0], keys.shape[0])
    columns.add(keys, residuals, preserved)
    return columns.solve(penalty)


def null_space_update(keys: Tensor, residuals: Tensor, preserved: Tensor, U0: Tensor, beta: float) -> LowRankDelta:
    """The update inside range(U0) that moves the outputs at `keys` by `residuals` and keeps them at `preserved`.

    Nothing of d_in x d_in is formed while the tokens are fewer than the basis.

    Args:
        keys: K, (d_in, n)
        residuals: R, (d_out, n)
        preserved: K_p, (d_in, m), m may be 0
        U0: (d_in, p), orthonormal columns, float64
        beta: > 0, in units of a squared key

    Returns:
        Factors in float64 of rank at most min(n, d_out, p).
    """
    columns = Columns(residuals.shape[0], keys.shape[0])
    columns.add(keys, residuals, preserved)
    return null_space_solve(columns, U0, beta)
