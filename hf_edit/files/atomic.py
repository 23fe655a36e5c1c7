"""Writing a folder so that a process killed at any moment leaves the old content or the new one, never a mixture.

The new folder is written and synced beside the target and then exchanged with it in one system call (Linux, macOS).
Where the system or the file system has no such call, the target is first renamed aside: killed between the two
renames, it is missing until `recover`, which reading and writing call, renames it back.

What a killed process leaves beside the target is `.<name>.<random>.saving` (locked while its writer lives) or
`.<name>.<random>.replaced`; the next save removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hf_edit.errors import PackError


try:
    import fcntl
except ImportError:  # Windows: what killed writers leave cannot be told from the folders of living ones, so it stays
    fcntl = None  # type: ignore[assignment]

_SAVING, _REPLACED = ".saving", ".replaced"
_ATTEMPTS = 4
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def write_directory(
    path: str | os.PathLike[str], files: Mapping[str, bytes], *, marker: str, known: Callable[[str], bool]
) -> None:
    """Make `path` a folder of exactly these files, replacing a folder of the same kind as a whole.

    Args:
        files: plain file name -> content.
        marker: the file by which a folder of this kind is recognised; one without it is not replaced.
        known: whether a file of this name belongs to such a folder; a folder with any other entry is not replaced.

    Raises:
        PackError: the target holds something else, or the system refused to write. Nothing is lost.
    """
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        recover(target)
        check_replaceable(target, marker, known)
        _sweep(target)
        with _temporary(target) as temporary:
            for name, data in files.items():
                _write_synced(temporary / name, data)
            if target.exists():
                shutil.copymode(target, temporary)
            _sync_folder(temporary)
            _put_in_place(temporary, target)
            _sync_folder(target.parent)
    except OSError as error:
        raise PackError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Choose a folder on a disk with free space that you may write to.",
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for a new file, which takes the place of `path` when the context ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def recover(path: str | os.PathLike[str]) -> None:
    """Rename a folder back that a killed process had renamed aside and not yet replaced."""
    target = Path(os.path.realpath(path))
    if not target.exists():
        for aside in _beside(target, _REPLACED):
            with suppress(OSError):  # a living writer was faster
                os.rename(aside, target)
                return


def check_replaceable(path: str | os.PathLike[str], marker: str, known: Callable[[str], bool]) -> None:
    """Raise a PackError where `write_directory` would, for what is there now; arguments as there."""
    target = Path(os.path.realpath(path))
    if not target.exists():
        return
    remedy = "Choose another folder, or move what is there away."
    if not target.is_dir():
        raise PackError(f"{target} is a file, not a folder.", remedy)
    entries = {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(target)}
    foreign = sorted(name for name, is_file in entries.items() if not (is_file and known(name)))
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise PackError(f"{target} holds what does not belong there: {shown}.", remedy)
    if entries and marker not in entries:
        raise PackError(f"{target} holds files but no {marker}, so it is left alone.", remedy)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A new folder beside the target, locked; whatever is under its name afterwards is removed."""
    with ExitStack() as stack:
        yield _own_folder(target, stack)


def _own_folder(target: Path, stack: ExitStack) -> Path:
    """Until it is locked, another writer may take it for a leftover and remove it: then there is another."""
    for attempt in range(_ATTEMPTS):
        temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}{_SAVING}"
        temporary.mkdir()
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        with suppress(FileNotFoundError):
            descriptor = stack.enter_context(_open_folder(temporary))
            # where there are no locks nobody takes anything for a leftover
            if (_lock(descriptor) or attempt == _ATTEMPTS - 1) and temporary.exists():
                return temporary
    raise OSError(errno.EBUSY, "others save there all the time")


def _put_in_place(temporary: Path, target: Path) -> None:
    """Afterwards the new folder is at `target`, and what was there, if anything, under the other's name."""
    if not target.exists():
        os.rename(temporary, target)
    elif not _exchange(temporary, target):
        aside = temporary.with_suffix(_REPLACED)
        os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except OSError:
            os.rename(aside, target)
            raise
        os.rename(aside, temporary)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths atomically. False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    one, other = os.fsencode(first), os.fsencode(second)
    if sys.platform.startswith("linux") and hasattr(libc, "renameat2"):
        at_fdcwd, rename_exchange = -100, 2
        failed = libc.renameat2(at_fdcwd, one, at_fdcwd, other, rename_exchange)  # type: ignore[union-attr]
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        rename_swap = 2
        failed = libc.renamex_np(one, other, rename_swap)
    else:
        return False
    code = ctypes.get_errno()
    if failed and code not in _NO_EXCHANGE:
        raise OSError(code, os.strerror(code))
    return not failed


def _sweep(target: Path) -> None:
    """Remove what killed writers left beside the target."""
    for leftover in _beside(target, _SAVING) + _beside(target, _REPLACED):
        with suppress(OSError), _open_folder(leftover) as descriptor:
            if _lock(descriptor):
                shutil.rmtree(leftover, ignore_errors=True)


def _beside(target: Path, suffix: str) -> list[Path]:
    pattern = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{16}" + re.escape(suffix))
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(Path(entry) for entry in os.scandir(target.parent) if pattern.fullmatch(entry.name))
    return []


@contextmanager
def _open_folder(path: Path) -> Iterator[int | None]:
    """A descriptor of the folder; None on Windows, which has none."""
    descriptor = os.open(path, os.O_RDONLY) if os.name == "posix" else None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int | None) -> bool:
    """Lock an open folder. False where its writer lives, or where the file system has no locks for folders (NFS).

    The system drops the lock when the process ends, however it ends.
    """
    if fcntl is None or descriptor is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with _open_folder(path) as descriptor:
        if descriptor is not None:
            os.fsync(descriptor)
