"""A corpus in disjoint parts, so that machines that know nothing of each other can each collect over one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from hf_edit.errors import ConfigError
from hf_edit.processes import Processes


T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`; all of them together are the whole.

    Args:
        number: from 1.

    Raises:
        ConfigError: on construction, where there is no such part.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(f"There is no shard {self}.", "Write i/n with i from 1 to n, such as 1/4.")

    @classmethod
    def parsed(cls, text: str) -> Shard:
        """`2/4` -> the second of four."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None:
            raise ConfigError(f"{text!r} is no shard.", "Write i/n with i from 1 to n, such as 1/4.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def split(self, processes: Processes) -> Shard:
        """This process's part of it; the parts of all come to the same, however many there are."""
        return Shard(self.number + processes.rank * self.count, self.count * processes.count)

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """The part of `items`: every `count`-th."""
        return items[self.number - 1 :: self.count]
