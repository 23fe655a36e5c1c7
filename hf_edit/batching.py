"""Running many things a few at a time, or some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar


T = TypeVar("T")


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of `size` items in order, the last one of what is left."""
    return (items[start : start + size] for start in range(0, len(items), size))


def evenly(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """`count` runs of items in order, none longer than another by more than one."""
    ends = [-(-i * len(items) // count) for i in range(count + 1)]
    return [items[begin:end] for begin, end in pairwise(ends)]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]
