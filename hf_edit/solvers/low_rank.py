"""Low-rank weight deltas: the only form in which hf_edit carries a change of a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """The change `dW = B @ A` of one linear map with `d_out` outputs and `d_in` inputs.

    Always in the orientation `outputs x inputs`, whatever the module that carries it stores.

    Args:
        B: (d_out, r)
        A: (r, d_in)
    """

    B: Tensor
    A: Tensor

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise ValueError(f"factors of shapes {tuple(self.B.shape)} and {tuple(self.A.shape)} do not multiply")

    @property
    def rank(self) -> int:
        """Number of columns of B, an upper bound of the rank of the product."""
        return self.B.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)"""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> Tensor:
        """The product, (d_out, d_in). For tests and merges; nothing else needs it."""
        return self.B @ self.A

    def outputs(self, inputs: Tensor) -> Tensor:
        """What the delta adds, (..., d_out), to the outputs for inputs (..., d_in) of its dtype and device."""
        return inputs @ self.A.T @ self.B.T

    def minus(self, other: LowRankDelta) -> LowRankDelta:
        """The exact difference to another delta of this shape, ranks added."""
        return concatenated([self, LowRankDelta(-other.B, other.A)])

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> LowRankDelta:
        """Both factors in another dtype or on another device."""
        return LowRankDelta(self.B.to(device=device, dtype=dtype), self.A.to(device=device, dtype=dtype))

    def norm(self) -> float:
        """Frobenius norm of the product, from the r x r Gram matrices of the factors."""
        B, A = self.B.double(), self.A.double()
        return float(((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt())

    def balanced(self) -> LowRankDelta:
        """The same product with each column of B about as long as its row of A.

        Scales are powers of two, so the product keeps every bit while the factors survive a cast to 16 bits.
        """
        b, a = self.B.double().norm(dim=0), self.A.double().norm(dim=1)  # (r,), (r,)
        usable = (b > 0) & (a > 0)
        ratio = torch.where(usable, a / b.clamp_min(torch.finfo(torch.float64).tiny), torch.ones_like(a))
        scale = torch.exp2(torch.round(torch.log2(ratio) / 2)).to(self.B.dtype)
        return LowRankDelta(self.B * scale, self.A / scale.to(self.A.dtype)[:, None])

    def padded(self, rank: int) -> LowRankDelta:
        """The same product with `rank` columns, the added ones zero."""
        extra = rank - self.rank
        if extra < 0:
            raise ValueError(f"a delta of rank {self.rank} cannot be padded to {rank}")
        return LowRankDelta(
            torch.nn.functional.pad(self.B, (0, extra)), torch.nn.functional.pad(self.A, (0, 0, 0, extra))
        )

    def trimmed(self, rank: int) -> LowRankDelta:
        """The first `rank` columns; undoes `padded`."""
        return LowRankDelta(self.B[:, :rank].clone(), self.A[:rank].clone())

    def compressed(self, rank: int) -> tuple[LowRankDelta, float]:
        """The best approximation of at most `rank` columns, by QR of both factors and an r x r SVD.

        Returns the delta and its relative Frobenius error.
        """
        Qb, Rb = torch.linalg.qr(self.B.double())  # (d_out, p), (p, r)
        Qa, Ra = torch.linalg.qr(self.A.double().T)  # (d_in, q), (q, r)
        U, S, Vh = torch.linalg.svd(Rb @ Ra.T, full_matrices=False)
        keep = min(rank, S.numel())
        total = float(S.square().sum())
        error = (float(S[keep:].square().sum()) / total) ** 0.5 if total > 0 else 0.0
        root = S[:keep].sqrt()
        B = (Qb @ (U[:, :keep] * root)).to(self.B.dtype)
        A = ((root[:, None] * Vh[:keep]) @ Qa.T).to(self.A.dtype)
        return LowRankDelta(B, A), error


def concatenated(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    """The exact sum of deltas of one shape, ranks added."""
    return LowRankDelta(torch.cat([d.B for d in deltas], dim=1), torch.cat([d.A for d in deltas], dim=0))


def summed(updates: Sequence[Mapping[str, LowRankDelta]]) -> dict[str, LowRankDelta]:
    """The exact sum of updates, name by name; what one of them changes alone is its own delta, not a copy."""
    found: dict[str, list[LowRankDelta]] = {}
    for update in updates:
        for name, delta in update.items():
            found.setdefault(name, []).append(delta)
    return {name: deltas[0] if len(deltas) == 1 else concatenated(deltas) for name, deltas in found.items()}


def with_identity(product: Tensor) -> LowRankDelta:
    """A product (d_out, d_in) as factors whose rank is its smaller side."""
    identity = torch.eye(min(product.shape), dtype=product.dtype, device=product.device)
    return LowRankDelta(identity, product) if product.shape[0] <= product.shape[1] else LowRankDelta(product, identity)


def merged_when_wide(delta: LowRankDelta) -> LowRankDelta:
    """The same product, multiplied out once the rank exceeds its smaller side."""
    return delta if delta.rank <= min(delta.shape) else with_identity(delta.dense())
