"""Memories that are short of something, for tests of what runs in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from hf_edit.models.memory import Memory


T = TypeVar("T")
R = TypeVar("R")


class Short(Memory):
    """Runs out behind any work on more than `at_most` items, and behind what has a backward pass unless it recomputes.

    Args:
        recomputes: whether every backward pass is to recompute.
        keeping: whether there is room for states.
    """

    def __init__(self, at_most: int = 1 << 30, *, recomputes: bool = False, keeping: bool = True) -> None:
        super().__init__(torch.device("cpu"))
        self.at_most, self.recomputes, self.keeping = at_most, recomputes, keeping
        self.ran_out: set[str] = set()

    def keeps(self, size: int) -> bool:
        return self.keeping

    def in_parts(
        self,
        kind: str,
        items: Sequence[T],
        work: Callable[[Sequence[T]], R],
        tokens: Callable[[T], int],
        most: int | None = None,
        *,
        backward: bool = False,
    ) -> Iterator[R]:
        def failing(part: Sequence[T]) -> R:
            done = work(part)  # as far as it gets, so that what it leaves behind shows
            if len(part) > self.at_most or (backward and self.recomputes and not self.recomputing):
                self.ran_out.add(kind)
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return done

        return super().in_parts(kind, items, failing, tokens, most, backward=backward)
