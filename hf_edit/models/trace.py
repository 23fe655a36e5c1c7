"""What is kept of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


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
