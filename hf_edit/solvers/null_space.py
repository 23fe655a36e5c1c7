"""AlphaEdit: updates that act only where what must not change has next to nothing (arXiv 2410.02355).

With U0 an orthonormal basis of that subspace and P = U0 U0^T, the update

    dW = R K^T P ((K K^T + K_p K_p^T) P + beta I)^-1                                       (AlphaEdit; AnyEdit, eq. 20)

is zero outside of range(P). In the coordinates k~ = U0^T k it is the ridge update with the penalty beta I, so it has
the same exact factors: B = R and A = (K~^T (K~ K~^T + K~_p K~_p^T + beta I)^-1) U0^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import Columns, symmetric


def null_space(C: Tensor, share: float) -> Tensor:
    """The eigenvectors of the smallest eigenvalues of C that together hold at most `share` of its trace.

    A threshold relative to the spectrum serves models and layers of any scale, which an absolute one does not.

    Args:
        C: (d_in, d_in), symmetric positive semi-definite second moment.
        share: between 0 and 1.

    Returns:
        U0, (d_in, m) with orthonormal columns, in float64.

    Raises:
        ComputationError: C is zero or not finite, or even its smallest eigenvalue holds more than that.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(symmetric(C))  # ascending
    held = eigenvalues.clamp_min(0).cumsum(0)
    count = int((held <= share * held[-1]).sum())
    if count == 0:
        raise ComputationError(
            f"No eigenvector of a second moment of width {C.shape[0]} holds at most {share:g} of its trace: the "
            f"smallest holds {float(held[0] / held[-1]):.3g}.",
            "Raise the share.",
        )
    return eigenvectors[:, :count]


@dataclass(frozen=True, eq=False)
class Isotropic:
    """The penalty weight * |dW|^2 over the coordinates of the basis U0 (d_in, m)."""

    basis: Tensor
    weight: float

    def solve(self, X: Tensor) -> Tensor:
        """G^-1 X for X (m, n)."""
        return X / self.weight

    def matrix(self) -> Tensor:
        """G, (m, m)."""
        return self.weight * torch.eye(self.basis.shape[1], dtype=self.basis.dtype, device=self.basis.device)


def null_space_solve(columns: Columns, U0: Tensor, beta: float) -> LowRankDelta:
    """The update inside range(U0) that gives the outputs which the columns ask for, as far as that goes.

    Nothing of d_in x d_in is formed while the tokens are fewer than the basis.

    Args:
        columns: keys (d_in, n) with residuals (d_out, n), and keys whose outputs are to stay.
        U0: (d_in, p), orthonormal columns, float64
        beta: > 0, in units of a squared key

    Returns:
        Factors in float64 of rank at most min(n, d_out, p).
    """
    inside = columns.projected(U0).solve(Isotropic(U0, beta))
    return LowRankDelta(inside.B, inside.A @ U0.T)
