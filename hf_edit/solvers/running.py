"""Running mean and variance of rows, merged exactly whatever the portions they come in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


EPSILON = torch.finfo(torch.float32).eps


class RunningMoments:
    """Count, mean and centred sum of squares of rows of one width, in float64.

    Args:
        count: rows seen.
        mean: (s,)
        squares: (s,), sum over rows of (x - mean)^2.
    """

    def __init__(self, count: int, mean: Tensor, squares: Tensor) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> RunningMoments:
        """No rows yet."""
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros.clone())

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> RunningMoments:
        """Undo `state`."""
        return cls(int(state["count"]), state["mean"].double(), state["squares"].double())

    def state(self) -> dict[str, Tensor]:
        """Tensors to keep."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "squares": self.squares}

    def add(self, rows: Tensor) -> None:
        """Merge rows (n, s), n >= 1, by the parallel formula of Chan, Golub and LeVeque."""
        x = rows.double()
        n, mean = len(x), x.mean(dim=0)
        total, apart = self.count + n, mean - self.mean
        self.squares = self.squares + (x - mean).square().sum(dim=0) + apart.square() * (self.count * n / total)
        self.mean = self.mean + apart * (n / total)
        self.count = total

    def standardised(self, rows: Tensor) -> Tensor:
        """(x - mean) / std for rows (n, s), in their dtype, with the unbiased std; constant columns give zero."""
        std = (self.squares / max(self.count - 1, 1)).sqrt()
        return ((rows.double() - self.mean) / (std + EPSILON)).to(rows.dtype)

    def scaled(self, rows: Tensor) -> Tensor:
        """x / rms for rows (n, s), in their dtype: not centred, so that one row is enough and keeps its direction."""
        rms = (self.squares / max(self.count, 1) + self.mean.square()).sqrt()
        return (rows.double() / (rms + EPSILON)).to(rows.dtype)
