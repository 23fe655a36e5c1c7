"""The directions in which the keys of an edit differ most from what must not change.

With C the second moment of what must not change, keys are whitened by C^-1/2. An update dW = B V^T C^-1/2 on
orthonormal directions V has the size tr(dW C dW^T) = |B|^2: the mean square by which it moves the outputs of
everything that C stands for. The leading left singular vectors of the whitened keys are where an update of bounded
rank reaches the most of the keys at the least such cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.errors import ComputationError


@dataclass(frozen=True, eq=False)
class Whitening:
    """C^-1/2 and C^1/2 of a second moment, both (d_in, d_in), symmetric, float64."""

    whiten: Tensor
    colour: Tensor


def whitening(C: Tensor, ridge: float) -> Whitening:
    """The whitening of C plus `ridge` times its mean eigenvalue on the diagonal.

    Args:
        C: (d_in, d_in), symmetric positive semi-definite.
        ridge: > 0 where C may be singular.

    Raises:
        ComputationError: C is not finite, or has no positive definite neighbour at this ridge.
    """
    C = C.double()
    C = (C + C.T) / 2
    mean = C.diagonal().mean()
    if not torch.isfinite(C).all():
        raise ComputationError(
            f"A second moment of width {C.shape[0]} is not finite.", "Collect the statistics anew, in float32."
        )
    values, vectors = torch.linalg.eigh(C)
    values = values + ridge * mean
    if not values[0] > 0:
        raise ComputationError(
            f"A second moment of width {C.shape[0]} (mean eigenvalue {mean:.3g}) is not positive definite with ridge "
            f"{ridge:g}.",
            "Collect statistics from more tokens, or raise the ridge.",
        )
    root = values.sqrt()
    return Whitening((vectors / root) @ vectors.T, (vectors * root) @ vectors.T)


def key_basis(gram: Tensor, whitening: Whitening, rank: int, fixed: Tensor | None = None) -> Tensor:
    """The rows V^T C^-1/2 of an update's right factor, (r, d_in) with r <= rank.

    Args:
        gram: (d_in, d_in), the sum of k k^T over the keys, weighted as one likes.
        rank: how many directions.
        fixed: (p, d_in), rows of a right factor that the result must be able to express; they count as part of the
            rank, and more than `rank` of them are all kept.

    Returns:
        Rows that are orthonormal once whitened; fewer than `rank` where the keys span fewer directions.
    """
    W = whitening.whiten
    G = W @ gram.double() @ W
    start = W.new_zeros(G.shape[0], 0)
    if fixed is not None and fixed.shape[0]:
        start = _orthonormal((fixed.double() @ whitening.colour).T)
        keep = torch.eye(G.shape[0], dtype=G.dtype, device=G.device) - start @ start.T
        G = keep @ G @ keep
    values, vectors = torch.linalg.eigh(G)
    room = max(0, rank - start.shape[1])
    spanned = int((values > values[-1] * 1e-12).sum()) if values[-1] > 0 else 0
    found = vectors.flip(1)[:, : min(room, spanned)]
    return torch.cat([start, found], dim=1).T @ W


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span."""
    U, S, _ = torch.linalg.svd(columns, full_matrices=False)
    return U[:, S > S[0] * 1e-10] if S.numel() and S[0] > 0 else U[:, :0]
