"""What a collection has come to, on disk, so that one that was killed goes on from there and gives the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from hf_edit.errors import StatisticsError
from hf_edit.statistics.files import opened, write


KEEP_SECONDS = 60.0


class Unfinished:
    """Intermediate results of one recipe by name; each is kept whole or not at all.

    Args:
        folder: made when something is kept; none: nothing is.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._kept_at = time.monotonic()

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What was kept under `name`; a file that cannot be read counts as not there."""
        if self._folder is None:
            return None
        try:
            with opened(self._path(self._folder, name)) as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except StatisticsError:
            return None

    def keep(self, name: str, tensors: Callable[[], Mapping[str, Tensor]], *, seldom: bool = False) -> None:
        """Keep what `tensors` gives under `name`.

        Args:
            seldom: only if nothing was kept for a minute.

        Raises:
            StatisticsError: the folder cannot be written.
        """
        if self._folder is None or (seldom and time.monotonic() - self._kept_at < KEEP_SECONDS):
            return
        write(tensors(), {"format": "pt"}, self._path(self._folder, name))
        self._kept_at = time.monotonic()

    def remove(self, *names: str) -> None:
        """Forget these, when what they led to is kept elsewhere."""
        if self._folder is None:
            return
        for name in names:
            self._path(self._folder, name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone
            self._folder.rmdir()

    @staticmethod
    def _path(folder: Path, name: str) -> Path:
        return folder / f"{name}.safetensors"
