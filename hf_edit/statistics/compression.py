"""Second moments in less space: the leading directions as a factor in bfloat16, and the rest as a diagonal.

C ~ L L^T + diag(t) with L (d_in, r). The diagonal is what L leaves of C's own, so that every input keeps its variance,
and the sum has no negative eigenvalue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.errors import ConfigError


FACTOR, DIAGONAL = "factor", "diagonal"


@dataclass(frozen=True)
class Compression:
    """How much is kept: this rank, or the smallest that holds this share of the trace.

    Raises:
        ConfigError: on construction, unless one of them is given, the rank at least 1 or the share between 0 and 1.
    """

    rank: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        ranked = self.rank is not None and self.rank >= 1 and self.share is None
        shared = self.share is not None and 0 < self.share < 1 and self.rank is None
        if not ranked and not shared:
            raise ConfigError(
                f"Statistics cannot be compressed to rank {self.rank} or share {self.share}.",
                "Give a rank such as 256, or a share of the trace between 0 and 1 such as 0.95.",
            )

    @classmethod
    def parsed(cls, text: str) -> Compression:
        """`256` is a rank, `0.95` a share of the trace."""
        try:
            return cls(rank=int(text))
        except ValueError:
            pass
        try:
            return cls(share=float(text))
        except ValueError:
            raise ConfigError(f"{text!r} is neither a rank nor a share.", "Write 256, or 0.95.") from None

    def rank_of(self, eigenvalues: Tensor) -> int:
        """The rank for a moment with these eigenvalues, descending."""
        if self.rank is not None:
            return min(self.rank, len(eigenvalues))
        held = eigenvalues.cumsum(dim=0) / eigenvalues.sum()
        assert self.share is not None
        return min(int((held < self.share).sum()) + 1, len(eigenvalues))


@dataclass(frozen=True, eq=False)
class Compressed:
    """L L^T + diag(t).

    Args:
        factor: L, (d_in, r) bfloat16.
        diagonal: t >= 0, (d_in,) fp32.
    """

    factor: Tensor
    diagonal: Tensor

    @classmethod
    def of(cls, moment: Tensor, how: Compression) -> Compressed:
        """The compressed form of a moment (d_in, d_in)."""
        values, vectors = torch.linalg.eigh(moment.double())  # ascending
        values = values.flip(0).clamp_min(0)
        rank = how.rank_of(values)
        factor = (vectors.flip(1)[:, :rank] * values[:rank].sqrt()).bfloat16()
        left = moment.diagonal().double() - factor.double().square().sum(dim=1)
        return cls(factor, left.clamp_min(0).float())

    def dense(self) -> Tensor:
        """The moment, (d_in, d_in) fp32."""
        factor = self.factor.float()
        return (factor @ factor.T).add_(self.diagonal.diag())

    def error(self, moment: Tensor) -> float:
        """|C - L L^T - diag(t)| / |C|, in Frobenius norms."""
        return float((moment - self.dense()).norm() / moment.norm())

    def tensors(self, part: str) -> dict[str, Tensor]:
        """As a file holds them."""
        return {f"{part}.{FACTOR}": self.factor.contiguous(), f"{part}.{DIAGONAL}": self.diagonal}


def parts_of(names: Iterable[str]) -> list[str]:
    """The parts that a file with tensors of these names holds, whole or compressed."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def moment_of(tensors: Mapping[str, Tensor], part: str) -> Tensor:
    """The moment of one part, (d_in, d_in) fp32, from the tensors of a file; KeyError where it is not among them."""
    if part in tensors:
        return tensors[part]
    return Compressed(tensors[f"{part}.{FACTOR}"], tensors[f"{part}.{DIAGONAL}"]).dense()
