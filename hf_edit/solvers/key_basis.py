"""The directions in which the keys of an edit differ most from what must not change.

With C = L L^T the second moment of what must not change, keys are whitened by L^-1. An update dW = B V^T L^-1 on
orthonormal directions V has the size tr(dW C dW^T) = |B|^2: the mean square by which it moves the outputs of
everything that C stands for. The leading left singular vectors of the whitened keys are where an update of bounded
rank reaches the most of the keys at the least such cost. (Any other root of C turns V and leaves V^T L^-1 as it is.)
"""

from __future__ import annotations

import torch
from torch import Tensor


NEGLIGIBLE = 1e-6
"""Directions that hold less than this share of the whitened keys' norm are rounding; a Gram matrix shows no less."""


class Keys:
    """Keys (d_in, n) added text by text, in float64: as they are while few, as sum of k k^T once they are many."""

    def __init__(self, d_in: int) -> None:
        self.d_in = d_in
        self._columns: list[Tensor] = []
        self._gram: Tensor | None = None

    def add(self, keys: Tensor) -> None:
        """Add keys (d_in, n)."""
        self._columns.append(keys.double())
        if self._gram is not None or sum(K.shape[1] for K in self._columns) > self.d_in // 2:
            K = torch.cat(self._columns, dim=1)
            self._gram = K @ K.T if self._gram is None else self._gram.addmm_(K, K.T)
            self._columns = []

    def root(self) -> Tensor:
        """K (d_in, s) with K K^T the sum over the keys."""
        if self._gram is None:
            return torch.cat(self._columns, dim=1)
        values, vectors = torch.linalg.eigh(self._gram)
        return vectors * values.clamp_min(0).sqrt()

    def leading(self, L: Tensor, outside: Tensor) -> Tensor:
        """Left singular vectors (d_in, s) of the whitened keys, the largest first: an orthonormal basis of their span.

        Args:
            L: (d_in, d_in), lower triangular, the Cholesky factor of C.
            outside: (d_in, p), orthonormal directions that are projected out.
        """
        if self._gram is None:
            X = torch.linalg.solve_triangular(L, torch.cat(self._columns, dim=1), upper=False)
            # what is left of keys inside `outside` is rounding, so the measure is their norm before
            U, S, _ = torch.linalg.svd(_without(X, outside), full_matrices=False)
            return U[:, S > NEGLIGIBLE * X.norm()]
        G = torch.linalg.solve_triangular(L, self._gram, upper=False)  # L^-1 G
        G = torch.linalg.solve_triangular(L, G.T, upper=False)  # L^-1 G L^-T
        G = (G + G.T).div_(2)
        values, vectors = torch.linalg.eigh(_without(_without(G, outside).T, outside))
        return vectors[:, values > NEGLIGIBLE**2 * G.trace()].flip(1)


def key_basis(keys: Keys, L: Tensor, rank: int, fixed: Tensor | None = None) -> Tensor:
    """The rows V^T L^-1 of an update's right factor, (r, d_in) with r <= rank.

    Args:
        keys: of the edits, weighted as one likes.
        L: (d_in, d_in), lower triangular, the Cholesky factor of C.
        rank: how many directions.
        fixed: (p, d_in), rows of a right factor that the result must be able to express; they count as part of the
            rank, and more than `rank` of them are all kept.

    Returns:
        Rows that are orthonormal once whitened, A C A^T = I; fewer than `rank` where the keys span fewer directions.
    """
    start = L.new_zeros(L.shape[0], 0)
    if fixed is not None:
        U, S, _ = torch.linalg.svd((fixed.double() @ L).T, full_matrices=False)
        start = U[:, S > 1e-10 * S[:1]]
    found = keys.leading(L, start)[:, : max(0, rank - start.shape[1])]
    V = torch.cat([start, found], dim=1)  # (d_in, r)
    return torch.linalg.solve_triangular(L.T, V, upper=True).T


def _without(X: Tensor, directions: Tensor) -> Tensor:
    if not directions.shape[1]:
        return X
    return X - directions @ (directions.T @ X)
