"""Closed-form updates of one linear map: ridge least squares against what must not change.

Columns are tokens: keys K (d_in, n), preserved keys K_p (d_in, m), residuals R (d_out, n). The update

    dW = argmin  |dW K - R|^2 + |dW K_p|^2 + tr(dW G dW^T)  =  R K^T (G + K K^T + K_p K_p^T)^-1        (MEMIT, eq. 14;
                                                                                            AnyEdit, eq. 19)
has rank n, and is returned as its factors B = R and A = K^T (...)^-1. Where the keys outnumber a side of the map the
identity of that side stands in for one of them, so that the rank never exceeds min(d_out, d_in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hf_edit.errors import ComputationError
from hf_edit.solvers.low_rank import LowRankDelta, with_identity


class QuadraticPenalty(Protocol):
    """A penalty tr(dW G dW^T) with G symmetric positive definite."""

    def solve(self, X: Tensor) -> Tensor:
        """G^-1 X for X (d_in, n)."""

    def matrix(self) -> Tensor:
        """G, (d_in, d_in)."""


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


def symmetric(C: Tensor) -> Tensor:
    """A second moment (d, d) in float64, symmetric to the bit.

    Raises:
        ComputationError: it is zero or not finite.
    """
    if not C.any():
        raise ComputationError(
            f"A second moment of width {C.shape[0]} is zero: what enters its map is zero at every token.",
            "Edit other layers; an update of this map would have no effect.",
        )
    if not torch.isfinite(C).all():
        raise ComputationError(f"A second moment of width {C.shape[0]} is not finite.", "Collect statistics again.")
    C = C.double()
    return (C + C.T).div_(2)


def penalty(C: Tensor, weight: float, ridge: float) -> Penalty:
    """The penalty of `weight` times C plus `ridge` times C's mean eigenvalue on the diagonal, in float64.

    Args:
        C: (d_in, d_in), symmetric positive semi-definite; a second moment of few tokens may be singular.
        weight: lambda > 0.
        ridge: relative to tr(C) / d_in.

    Raises:
        ComputationError: C is zero or not finite, or has no positive definite neighbour at this ridge.
    """
    C = symmetric(C)
    mean_eigenvalue = C.diagonal().mean()
    C.diagonal().add_(ridge * mean_eigenvalue)
    factor, failed = torch.linalg.cholesky_ex(C)
    if failed or not torch.isfinite(factor).all():
        raise ComputationError(
            f"A second moment of width {C.shape[0]} (mean eigenvalue {mean_eigenvalue:.3g}) is not positive definite "
            f"with ridge {ridge:g}.",
            "Collect statistics from more tokens, or raise the ridge.",
        )
    return Penalty(factor, weight)


class Columns:
    """The columns of one solve, added text by text and held no larger than an exact solve needs them, in float64.

    Fewer than the inputs are kept as they are, for a solve in the space of the tokens. From then on only X X^T over
    all of them is, (d_in, d_in), beside the keys and residuals; and once the keys outnumber min(d_out, d_in), only
    R K^T, (d_out, d_in), in place of these.
    """

    def __init__(self, d_out: int, d_in: int) -> None:
        self.d_out, self.d_in = d_out, d_in
        self._keys: list[Tensor] = []
        self._residuals: list[Tensor] = []
        self._preserved: list[Tensor] = []
        self._gram: Tensor | None = None  # X X^T
        self._cross: Tensor | None = None  # R K^T
        self._n_keys = self._n_tokens = 0

    def add(self, keys: Tensor, residuals: Tensor, preserved: Tensor) -> None:
        """Add keys (d_in, n), their residuals (d_out, n) and preserved keys (d_in, m); n and m may be 0."""
        K, R, P = keys.double(), residuals.double(), preserved.double()
        self._n_keys += K.shape[1]
        self._n_tokens += K.shape[1] + P.shape[1]
        self._keys.append(K)
        self._residuals.append(R)
        self._preserved.append(P)
        if self._n_tokens < self.d_in:
            return
        if self._gram is None:
            self._gram = _gram(torch.cat([*self._keys, *self._preserved], dim=1))
        else:
            self._gram += _gram(torch.cat([K, P], dim=1))
        self._preserved = []
        if self._n_keys > min(self.d_out, self.d_in):
            kept = torch.cat(self._residuals, dim=1) @ torch.cat(self._keys, dim=1).T
            self._cross = kept if self._cross is None else self._cross + kept
            self._keys, self._residuals = [], []

    def projected(self, U: Tensor) -> Columns:
        """The columns in the coordinates U^T k of a subspace with the orthonormal basis U (d_in, m)."""
        inside = Columns(self.d_out, U.shape[1])
        if self._gram is None:
            for K, R, P in zip(self._keys, self._residuals, self._preserved, strict=True):
                inside.add(U.T @ K, R, U.T @ P)
            return inside
        inside._gram = U.T @ self._gram @ U
        inside._cross = None if self._cross is None else self._cross @ U
        inside._keys = [U.T @ K for K in self._keys]
        inside._residuals = self._residuals
        inside._n_keys, inside._n_tokens = self._n_keys, self._n_tokens
        return inside

    def restricted(self, indices: Tensor) -> Columns:
        """The columns as seen by an update of the inputs `indices` (m,) alone."""
        inside = Columns(self.d_out, len(indices))
        if self._gram is None:
            for K, R, P in zip(self._keys, self._residuals, self._preserved, strict=True):
                inside.add(K[indices], R, P[indices])
            return inside
        inside._gram = self._gram[indices][:, indices]
        inside._cross = None if self._cross is None else self._cross[:, indices]
        inside._keys = [K[indices] for K in self._keys]
        inside._residuals = self._residuals
        inside._n_keys, inside._n_tokens = self._n_keys, self._n_tokens
        return inside

    def sums(self) -> tuple[Tensor, Tensor]:
        """X X^T over all columns, (d_in, d_in), and R K^T, (d_out, d_in)."""
        gram, cross = self._gram, self._cross
        if gram is None:
            gram = _gram(torch.cat([*self._keys, *self._preserved], dim=1))
        if cross is None:
            cross = torch.cat(self._residuals, dim=1) @ torch.cat(self._keys, dim=1).T
        return gram, cross

    def solve(self, penalty: QuadraticPenalty) -> LowRankDelta:
        """R K^T (G + X X^T)^-1 as factors of rank at most min(n, d_out, d_in), in float64.

        Works in the space of the tokens (Woodbury) while they are fewer than the inputs, else in that of the inputs.
        """
        if self._cross is not None:
            assert self._gram is not None
            return with_identity(torch.linalg.solve(penalty.matrix() + self._gram, self._cross.T).T)
        K, R = torch.cat(self._keys, dim=1), torch.cat(self._residuals, dim=1)
        if self._gram is not None:
            A = torch.linalg.solve(penalty.matrix() + self._gram, K).T
        else:
            X = torch.cat([K, *self._preserved], dim=1)  # (d_in, T)
            Y = penalty.solve(X)  # G^-1 X
            inner = torch.eye(X.shape[1], dtype=X.dtype, device=X.device) + X.T @ Y  # I + S
            # (G + X X^T)^-1 X = Y (I + S)^-1: the rows that belong to the keys
            A = torch.linalg.solve(inner, Y.T)[: K.shape[1]]
        return LowRankDelta(R, A) if self._n_keys <= min(self.d_out, self.d_in) else with_identity(R @ A)


def _gram(X: Tensor) -> Tensor:
    return X @ X.T
