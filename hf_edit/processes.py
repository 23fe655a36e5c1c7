"""Several processes that compute one result: each does its share of the work, and all of them hold the whole.

`accelerate launch` or `torchrun` starts them, with the same arguments. What one process would compute comes out of
every one of them, up to the order in which floats are added. One process alone pays nothing for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from hf_edit.batching import batched, evenly
from hf_edit.errors import HfEditError


if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
LONGEST_WAIT = timedelta(hours=24)
"""For another process. One that dies is noticed at once by whatever started it, which then ends them all."""
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Where launchers say how many processes there are, and which one this is."""
_ALONE = ContextVar("alone", default=False)


@dataclass(frozen=True)
class Processes:
    """This process among `count`. Methods that share results must be called by all of them, in the same order.

    Args:
        rank: from 0.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls, device: torch.device) -> Processes:
        """Those that were started together with this one; it alone where there are none.

        Args:
            device: where this process computes.
        """
        if not _several():
            return cls()
        from accelerate import PartialState  # type: ignore[import-untyped]

        state = PartialState(cpu=device.type == "cpu", timeout=LONGEST_WAIT)
        return cls(state.process_index, state.num_processes)

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share."""
        return items[self.rank :: self.count]

    def batches(self, items: Sequence[T], size: int) -> list[Sequence[T]]:
        """Runs of `size` items in order; for several processes shorter ones, so that each gets equally many."""
        if self.count == 1 or not items:
            return list(batched(items, size))
        rounds = -(-len(items) // (size * self.count))
        return evenly(items, min(len(items), rounds * self.count))

    def map(self, compute: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`compute` of every item, in order; each process computes its share and tells the others.

        Args:
            compute: works `alone`, as the others are at other items; its tensors are on the CPU.

        Raises:
            HfEditError: in all processes, what `compute` raised in one of them.
        """
        if self.count == 1:
            return [compute(item) for item in items]
        own: list[R] | HfEditError
        try:
            with alone():
                own = [compute(item) for item in self.mine(items)]
        except HfEditError as error:  # told to the others, who would wait for results that never come
            own = error
        every = self.gathered(own)
        shares: list[list[R]] = []
        for share in every:
            if isinstance(share, HfEditError):
                raise share
            shares.append(share)
        return [shares[i % self.count][i // self.count] for i in range(len(items))]

    def once(self, compute: Callable[[], R]) -> R:
        """What the first process computes, in all of them; errors as for `map`."""
        return self.map(lambda _: compute(), [None])[0]

    def gathered(self, value: T) -> list[T]:
        """What each process has, by rank."""
        if self.count == 1:
            return [value]
        from torch import distributed

        every: list[T] = [value] * self.count
        distributed.all_gather_object(every, value)
        return every

    def first(self, value: T) -> T:
        """What the first process has."""
        if self.count == 1:
            return value
        from torch import distributed

        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Put the sums over all processes in place of the tensors."""
        if self.count == 1:
            return
        from torch import distributed

        for tensor in tensors:
            distributed.all_reduce(tensor)

    def wait(self) -> None:
        """For all processes to come here."""
        self.gathered(None)


def is_first() -> bool:
    """Whether this is the process that writes and prints: the first of those started together, or the only one."""
    return _told(RANKS, 0) == 0


def placed(device: str | None) -> str | None:
    """The device where this process is to work.

    Args:
        device: as the user named it; none: one accelerator for each process, where there are several of both.
    """
    if device is not None or not _several():
        return device
    import torch
    from accelerate import PartialState

    cpu = not torch.cuda.is_available()  # accelerate joins processes without accelerators only where it is told
    state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    return "cpu" if cpu else str(state.device)


@contextmanager
def alone() -> Iterator[None]:
    """While it is open this process computes by itself: for work that is shared out in whole results."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _several() -> bool:
    return not _ALONE.get() and _told(SIZES, 1) > 1


def _told(names: Iterable[str], otherwise: int) -> int:
    """What the launcher says, under whichever name it says it."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), otherwise)
