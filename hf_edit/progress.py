"""How long computations report what they are doing, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """A listener. `stage` opens a unit of work, `step` advances the one opened last."""

    def stage(self, name: str, total: int) -> None:
        """Open the stage `name` of `total` steps; the stage before it is finished."""

    def step(self, advance: int = 1, **info: float | str) -> None:
        """Advance the open stage; `info` holds what to show beside it, such as the loss."""


class Silent:
    """A listener that ignores everything."""

    def stage(self, name: str, total: int) -> None:
        del name, total

    def step(self, advance: int = 1, **info: float | str) -> None:
        del advance, info
