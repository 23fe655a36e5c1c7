"""Running many things a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar


T = TypeVar("T")


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of `size` items in order, the last one of what is left."""
    return (items[start : start + size] for start in range(0, len(items), size))
