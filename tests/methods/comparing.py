"""How far a fast path and its plain reference are apart."""

from __future__ import annotations

from torch import Tensor


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry where that is above 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))
