"""What a pack costs, and on what: seconds by stage, memory at its peak, bytes on disk, ranks and norms."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from hf_edit.models.editable import EditableModel
from hf_edit.models.footprint import peak_over
from hf_edit.packs.contents import VALUES, to_files
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress


STATISTICS = "statistics"
"""How stages begin that are needed once per base, whatever is edited; their results are kept."""
OTHER = "other"


class Clock:
    """A listener that takes the time of each stage, and hands on what it is told."""

    def __init__(self, listener: Progress) -> None:
        self._listener = listener
        self._seconds: dict[str, float] = {}
        self._stage, self._began = OTHER, time.perf_counter()

    def stage(self, name: str, total: int) -> None:
        """Open a stage."""
        self._turn(STATISTICS if name.startswith(STATISTICS) else name)
        self._listener.stage(name, total)

    def step(self, advance: int = 1, **info: float | str) -> None:
        """Advance it."""
        self._listener.step(advance, **info)

    def stop(self) -> dict[str, float]:
        """Stage -> seconds; `other` is what came before the first."""
        self._turn(OTHER)
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}

    def _turn(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._began
        self._stage, self._began = stage, now


class Peak:
    """The most memory that was in use, in bytes, while a `watched` block ran."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}


@contextmanager
def watched(device: torch.device) -> Iterator[Peak]:
    """Of the process (resident) and, where it computes on one, of the CUDA device.

    Args:
        device: where the block computes.
    """
    peak, places = Peak(), {"process": torch.device("cpu")} | ({"cuda": device} if device.type == "cuda" else {})
    with ExitStack() as stack:
        taken = {name: stack.enter_context(peak_over(place)) for name, place in places.items()}
        yield peak
    peak.found = {name: one.peak for name, one in taken.items()}


def pack_facts(pack: EditPack, view: EditableModel) -> dict[str, Any]:
    """Size, rank and norms of a pack, as JSON.

    Args:
        view: on the pack's base.
    """
    files = to_files(pack, "portable", values=True)
    changed = {linear.name: linear for linear in view.linears_named(list(pack.deltas))}
    return {
        "edits": len(pack.edits),
        "bytes": sum(len(data) for name, data in files.items() if name != VALUES),
        "bytes_of_values": len(files.get(VALUES, b"")),
        "modules": {
            name: {
                "layer": changed[name].layer,
                "rank": delta.rank,
                "norm": round(delta.norm(), 6),
                "relative_norm": round(delta.norm() / _norm(changed[name].weight), 6),
            }
            for name, delta in pack.deltas.items()
        },
    }


def hardware() -> dict[str, Any]:
    """What seconds depend on, as JSON; versions, dtype and device stand with what was computed."""
    lines: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "python": platform.python_version(),
        "processor": next(names, platform.machine()),
        "threads": torch.get_num_threads(),
    }


def _norm(weight: Any) -> float:
    return float(weight.detach().float().norm())
