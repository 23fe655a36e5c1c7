"""Memory as a budget: what runs at once shrinks until it fits, and what ran out is run again in smaller parts.

Nothing is estimated. With a budget every tensor that is made is counted, and the one that would go beyond it ends the
part as a device does that has run out. A tensor's size depends on shapes alone, so a budget always cuts alike.
"""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_edit.errors import ConfigError, MemoryBudgetError
from hf_edit.models.footprint import free, peak_over


T = TypeVar("T")
R = TypeVar("R")
UNITS = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for unit, base in (("", 1000), ("B", 1000), ("IB", 1024))
}
COMMON_SHARE, COMMON_LEAST = 0.5, 1 << 28
"""On a CPU without a budget parts stop growing at this share of the model's size, or these bytes: beyond a few hundred
tokens more of them at once are no faster there."""
STATES_SHARE = 0.25
"""Of what is left, for states that are kept only to be quick."""
RAN_OUT = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
"""What allocators say."""


def parse_bytes(size: int | str) -> int:
    """Bytes, from a number of them or text such as 2GB, 1.5 GiB or 800M; of the letters' case nothing depends.

    Raises:
        ConfigError: it is no size, or less than one byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", str(size))
    if isinstance(size, bool) or found is None or found[2].upper() not in UNITS:
        raise ConfigError(f"{size!r} is no amount of memory.", "Write a number of bytes, or one like 800MB or 2GiB.")
    number = float(found[1]) * UNITS[found[2].upper()]
    if number < 1:
        raise ConfigError(f"A memory budget of {size!r} is less than one byte.", "Give a larger one.")
    return int(number)


def shown_bytes(size: int) -> str:
    """A size rounded up, in the largest unit that leaves three digits; reads back as no less than it was."""
    for unit in ("GB", "MB", "KB"):
        if size >= 10 * UNITS[unit]:
            return f"{-(-size // UNITS[unit])}{unit}"
    return f"{size}B"


class BeyondBudget(RuntimeError):
    """A tensor that would go beyond what may be taken."""


class Count(TorchDispatchMode):
    """While it is entered, the bytes of all tensors that were made since and are still there.

    Of what kernels take for themselves in passing nothing is seen.

    Args:
        device: tensors elsewhere do not count.
        limit: more raises `BeyondBudget`; None: there is none.
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        super().__init__()
        self.limit, self.live, self.peak = limit, 0, 0
        self._kind = device.type
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _returns_views(func):
            for made in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(made, Tensor) and made.device.type == self._kind:
                    self._add(made)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return
        if self.limit is not None and self.live + size > self.limit:
            raise BeyondBudget(self.live + size)
        self._held[key] = weakref.ref(storage, lambda _: self._gone(key)), size
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int) -> None:
        self.live -= self._held.pop(key)[1]


_VIEWS: dict[Any, bool] = {}


def _returns_views(func: Any) -> bool:
    """Whether what an operator returns is memory that was there before."""
    if func not in _VIEWS:
        _VIEWS[func] = any(one.alias_info is not None for one in func._schema.returns)
    return _VIEWS[func]


class Memory:
    """What a computation may take beside the model, and how much of it runs at once for that.

    Args:
        device: where it computes.
        budget: bytes beyond what was there when `watched` began; None: what the device has.
        base: bytes of the model.
    """

    def __init__(self, device: torch.device, budget: int | None = None, base: int = 0) -> None:
        self.device, self.budget = device, budget
        self.peak: int | None = None
        self.recomputing = False
        """Whether blocks are to keep nothing for a backward pass but their inputs."""
        self._common = max(COMMON_LEAST, int(COMMON_SHARE * base))
        self._count: Count | None = None
        self._most: dict[str, int] = {}
        self._ran: dict[str, int] = {}
        self._too_long: dict[str, int] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the budget, and note in `peak` the most bytes beyond what was there that were taken at once.

        With a budget these are of tensors; else they are what the accelerator, or the process, says.

        Raises:
            MemoryBudgetError: it cannot be kept, or the device has run out.
        """
        self._count = None if self.budget is None else Count(self.device, self.budget)
        with peak_over(self.device) as taken:
            try:
                with self._count or nullcontext():
                    yield
            except Exception as error:
                if not ran_out(error):
                    raise
                at_least = error.args[0] if isinstance(error, BeyondBudget) else None
                raise self._refused("What the method holds", at_least) from error
            finally:
                counted, self._count = self._count, None
        self.peak = taken.beyond if counted is None else counted.peak

    def keeps(self, size: int) -> bool:
        """Whether there is room for so many bytes that are kept only to be quick."""
        if self._count is not None and self.budget is not None:
            return size <= STATES_SHARE * (self.budget - self._count.live)
        left = free(self.device)
        return left is None or size <= STATES_SHARE * left

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
        """`work` of runs of the items in order, each as long as fits.

        A run that does not fit is done again in halves, so `work` leaves nothing behind when it raises; and runs of
        its kind stay as short from then on.

        Args:
            kind: of work, alike in what it takes for a token.
            tokens: of one item; what runs together is padded to the longest.
            most: items run together.
            backward: `work` has a backward pass of its own, inside of whatever stands beside the model. One item that
                does not fit is then run with `recomputing`, which costs a third more. Only then: a text has tokens
                enough to keep a device busy, so a larger part would not win that back.

        Raises:
            MemoryBudgetError: one item alone does not fit.
        """
        begin = 0
        while begin < len(items):
            part = self._fitting(kind, items[begin : None if most is None else begin + most], tokens)
            size = len(part) * max(map(tokens, part))
            done = self._attempted(kind, part, size, work, backward)
            if done:
                begin += len(part)
                yield done[0]
            else:
                gc.collect()  # what the error's traceback still held
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _fitting(self, kind: str, items: Sequence[T], tokens: Callable[[T], int]) -> Sequence[T]:
        """The longest beginning of `items` that may run together, of one item at least."""
        if kind not in self._most:
            return items
        longest = count = 0
        for count, item in enumerate(items):
            longest = max(longest, tokens(item))
            if (count + 1) * longest > self._most[kind]:
                return items[: max(1, count)]
        return items[: count + 1]

    def _attempted(
        self, kind: str, part: Sequence[T], size: int, work: Callable[[Sequence[T]], R], backward: bool
    ) -> tuple[R] | None:
        """What the work gave; None where it ran out and is to be tried again, in smaller parts or recomputing."""
        self.recomputing = backward and size >= self._too_long.get(kind, size + 1)
        try:
            with self._guarded(kind, size, alone=len(part) == 1):
                done = (work(part),)
        except Exception as error:
            if not ran_out(error):
                raise
            if len(part) > 1:
                self._most[kind] = size // 2
            elif backward and not self.recomputing:
                self._too_long[kind] = size
            else:
                needed = error.args[0] if isinstance(error, BeyondBudget) else None
                raise self._refused(f"One text of {size} tokens", needed) from None
            return None
        finally:
            self.recomputing = False
        self._ran[kind] = max(size, self._ran.get(kind, 0))
        return done

    def _guarded(self, kind: str, size: int, alone: bool) -> AbstractContextManager[Any]:
        """On a CPU without a budget: a part larger than any before is stopped before the machine runs out."""
        if self._count is not None or alone or self.device.type != "cpu" or size <= self._ran.get(kind, 0):
            return nullcontext()
        left = free(self.device)
        return Count(self.device, self._common if left is None else min(left, self._common))

    def _refused(self, what: str, at_least: int | None) -> MemoryBudgetError:
        if at_least is None:
            left = free(self.device)
            has = "" if left is None else f", which has {shown_bytes(left)} left"
            return MemoryBudgetError(
                f"{what} does not fit into the memory of {self.device}{has}.",
                "Shorten the longest answer, load the model in bfloat16, or use a larger device.",
            )
        assert self.budget is not None
        return MemoryBudgetError(
            f"{what} needs {shown_bytes(at_least)} or more beside the model, and the memory budget is "
            f"{shown_bytes(self.budget)}.",
            f"Give a budget above {shown_bytes(at_least)}, or none; where the model writes, a lower statistics.batch.",
        )


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    if isinstance(error, (BeyondBudget, MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in RAN_OUT)
