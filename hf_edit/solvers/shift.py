"""Ridge least squares from desired changes of outputs to a change of the weight, as exact factors.

Rows are tokens: keys K (n, d_in), desired changes D (n, d_out). With a penalty tr(dW G dW^T),

    dW = argmin |K dW^T - D|^2 + tr(dW G dW^T) = D^T A,   A = C^-1 K G^-1 = K (G + K^T K)^-1,   C = I + K G^-1 K^T

(MALMEN, arXiv 2311.04661, with G = lambda I; the second form of A by push-through). One Cholesky factor, of C or of
G + K^T K, whichever is smaller, serves the solve and the gradients through it.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.low_rank import LowRankDelta, merged_when_wide
from hf_edit.solvers.ridge import QuadraticPenalty


class Protected:
    """Q = I + sum of w k k^T over protected keys, and its inverse, in float64; the identity while there are none."""

    def __init__(self, d_in: int, device: torch.device | str = "cpu") -> None:
        self.d_in, self._device = d_in, device
        self._inverse: Tensor | None = None

    def copied(self) -> Protected:
        """The same, to go on from on its own: nothing here is ever written in place."""
        return copy(self)

    def add(self, keys: Tensor, weight: float = 1.0) -> None:
        """Protect keys (n, d_in). The inverse follows by Woodbury's identity while the keys are few."""
        if weight == 0 or not len(keys):
            return
        K = weight**0.5 * keys.double()
        if len(K) >= self.d_in:
            self.add_moment(K.T @ K)
            return
        inverse = self._identity() if self._inverse is None else self._inverse
        Y = inverse @ K.T  # Q^-1 K^T
        inner = torch.eye(len(K), dtype=K.dtype, device=K.device) + K @ Y
        self._inverse = inverse - Y @ torch.cholesky_solve(Y.T, _cholesky(inner))

    def add_moment(self, moment: Tensor, weight: float = 1.0) -> None:
        """Protect by a sum of k k^T, (d_in, d_in), known as such."""
        self._inverse = _inverse(self.matrix() + weight * moment.double())

    def matrix(self) -> Tensor:
        """Q, (d_in, d_in): from its inverse, which alone is kept."""
        return self._identity() if self._inverse is None else _inverse(self._inverse)

    def _identity(self) -> Tensor:
        return torch.eye(self.d_in, dtype=torch.float64, device=self._device)

    def solve(self, X: Tensor) -> Tensor:
        """Q^-1 X for X (d_in, n)."""
        return X if self._inverse is None else self._inverse @ X


@dataclass(frozen=True, eq=False)
class Ridge:
    """The penalty G = weight * Q.

    Args:
        weight: lambda > 0.
    """

    protected: Protected
    weight: float

    def solve(self, X: Tensor) -> Tensor:
        """G^-1 X for X (d_in, n)."""
        return self.protected.solve(X) / self.weight

    def matrix(self) -> Tensor:
        """G, (d_in, d_in)."""
        return self.weight * self.protected.matrix()


class KeySolve:
    """The linear map from desired changes at fixed keys to dW, and what backpropagation through it needs.

    Args:
        keys: K, (n, d_in).
        penalty: G; lambda below is the number that scales all of it.

    Raises:
        ComputationError: keys that are not finite.
    """

    def __init__(self, keys: Tensor, penalty: QuadraticPenalty) -> None:
        K = keys.double()
        n, d_in = K.shape
        self._keys: Tensor | None = None
        if n <= d_in:
            Y = penalty.solve(K.T)  # G^-1 K^T, (d_in, n)
            self._factor = _cholesky(torch.eye(n, dtype=K.dtype, device=K.device) + K @ Y)
            self.A = torch.cholesky_solve(Y.T, self._factor)
        else:
            self._keys = K
            self._factor = _cholesky(penalty.matrix() + K.T @ K)
            self.A = torch.cholesky_solve(K.T, self._factor).T.contiguous()  # (n, d_in)

    def delta(self, changes: Tensor) -> LowRankDelta:
        """dW for D (n, d_out) in float64, of rank at most min(n, d_out, d_in)."""
        return merged_when_wide(LowRankDelta(changes.double().T, self.A))

    def unmet(self, changes: Tensor) -> Tensor:
        """C^-1 D, (n, d_out): what the solve leaves of the desired changes."""
        D = changes.double()
        if self._keys is None:
            return torch.cholesky_solve(D, self._factor)
        return D - self.A @ (self._keys.T @ D)

    def log_lambda_gradient(self, gradient: Tensor, changes: Tensor) -> Tensor:
        """dL / d log(lambda) = -<dL/dD, C^-1 D>, a number, with dL/dD (n, d_out) = A dL/d(dW)^T."""
        return -(gradient.double() * self.unmet(changes)).sum()


def _inverse(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(_cholesky(matrix))


def _cholesky(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed or not torch.isfinite(factor).all():
        raise ComputationError(
            "A ridge solve met keys that are not finite, or too large for float64.",
            "Compute in float32 (--dtype float32), or take smaller steps.",
        )
    return factor
