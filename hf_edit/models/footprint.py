"""What memory there is, and what a computation took of it: the one place that asks the system."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch


CGROUP = Path("/sys/fs/cgroup")


def free(device: torch.device) -> int | None:
    """Bytes that can still be taken there; None where the system does not say.

    On the CPU the smaller of what the machine has and what the control group (a container's limit) leaves.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    left = [found for found in (_available(), _left_in_group()) if found is not None]
    return min(left, default=None)


@dataclass(eq=False)
class Taken:
    """Bytes in use at the peak, and beyond what was in use before; known once the block has ended."""

    peak: int = 0
    beyond: int = 0


@contextmanager
def peak_over(device: torch.device) -> Iterator[Taken]:
    """The most memory in use while the block runs: of the CUDA device, else of the process (resident).

    Linux can begin a new count for each block; elsewhere the process's peak is that since it was started.
    """
    taken, around = Taken(), _OPEN.setdefault(str(device), [])
    for outer in around:  # whose count is about to begin anew
        outer.peak = max(outer.peak, _peak(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS") or _resident_peak()
    around.append(taken)
    try:
        yield taken
    finally:
        around.remove(taken)
        taken.peak = max(taken.peak, _peak(device))
        taken.beyond = max(0, taken.peak - before)


_OPEN: dict[str, list[Taken]] = {}
"""By device, the blocks that run."""


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak()


def _resident_peak() -> int:
    found = _status("VmHWM")
    if found is None:
        with suppress(ImportError):  # not on Windows
            import resource

            found = (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found or 0


def _status(name: str) -> int | None:
    return _field(Path("/proc/self/status"), name)


def _available() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _field(file: Path, name: str) -> int | None:
    """A figure of a file of Linux's that gives it in kB, in bytes."""
    with suppress(OSError, StopIteration, ValueError):
        lines = file.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    return None


def _left_in_group(group: Path = CGROUP) -> int | None:
    """What the limit of a control group (version 2) leaves; files it keeps in memory can go."""
    with suppress(OSError, ValueError, StopIteration):  # ValueError: "max", there is no limit
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        files = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return max(0, limit - used + files)
    return None
