"""What is kept of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Trace:
    """What a forward pass left behind. All tensors are (B, T, width).

    Args:
        inputs: linear name -> its inputs (the keys).
        outputs: linear name -> its outputs.
        entering: block index -> residual stream before the block.
        leaving: block index -> residual stream after the block.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    entering: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Trace:
        """The same, all of it on one device."""

        def moved(kept: dict[T, Tensor]) -> dict[T, Tensor]:
            return {key: tensor.to(device) for key, tensor in kept.items()}

        return Trace(moved(self.inputs), moved(self.outputs), moved(self.entering), moved(self.leaving))
