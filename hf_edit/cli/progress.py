"""Progress on the terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """A `hf_edit.progress.Progress` that draws bars on stderr, or one line per finished stage where it is no terminal.

    stdout is left to results.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}", style="dim"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._open: Task | None = None

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        self._close()
        task = self._bars.add_task(name, total=total, info="")
        self._open = next(t for t in self._bars.tasks if t.id == task)

    def step(self, advance: int = 1, **info: float | str) -> None:
        if self._open is not None:
            self._bars.update(self._open.id, advance=advance)
            if info:
                shown = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items())
                self._bars.update(self._open.id, info=shown)

    def _close(self) -> None:
        task, self._open = self._open, None
        if task is not None and not self._console.is_terminal:
            info = f"  {task.fields['info']}" if task.fields["info"] else ""
            line = f"{task.description} {task.completed:.0f}/{task.total:.0f} in {task.elapsed or 0:.1f} s{info}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
