"""Reading files that anybody may have written: plain files only, of bounded size, and nothing that can run code."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from hf_edit.errors import PackError
from hf_edit.files import strict_json
from hf_edit.validation import shown


MAX_JSON_BYTES = 256 << 20
MAX_TENSOR_BYTES = 1 << 40
"""More than memories hold. Reading takes no more than the file has, which whoever sends it has to send."""
MAX_HEADER_BYTES = 100_000_000
"""What the library reads at most. As Python objects, a header takes some thirty times as much: see `header_limit`."""
MAX_SIZE = 1 << 48
"""Of one side of a tensor; torch fails in other ways on more, and a side of 0 makes any other cost nothing."""
PICKLES = (".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
"""Endings of files that run code when they are opened, and that other libraries take for weights."""

_ANEW = "The file is damaged: get it anew from where it was published."


class PlainFolder:
    """The files of a folder that was written by hf_edit, or says so.

    Args:
        path: the folder.
        within: a Hub cache stores files as links into a folder of its own; links are allowed to lead there, and
            nowhere without it.

    Raises:
        PackError: no such folder, or one that holds pickled weights.
    """

    def __init__(self, path: Path, within: Path | None = None) -> None:
        self.path = path
        self._within = within
        if not path.is_dir():
            raise PackError(f"{path} is not a folder.", "Give an existing folder, or an id on the Hub.")
        pickles = sorted(name for name in os.listdir(path) if name.lower().endswith(PICKLES))
        if pickles:
            raise PackError(
                f"{path} holds {pickles[0]}, a kind of file that can run code when it is opened.",
                "Weights belong in safetensors files: delete this one if you trust the rest, else the folder.",
            )

    @property
    def cached(self) -> bool:
        """Whether its files may be links, as those of a Hub cache are."""
        return self._within is not None

    def read(self, name: str, limit: int = MAX_JSON_BYTES) -> bytes:
        """The content of a plain file of at most `limit` bytes.

        Raises:
            PackError: missing, a link out of the folder, not a plain file, too large, or still growing.
        """
        path = self._resolved(name)
        try:
            return _read_plain(path, name, limit)
        except FileNotFoundError as error:
            raise PackError(f"{self.path} has no {name}.", "Give a complete folder, or get it anew.") from error
        except OSError as error:
            raise PackError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
        except MemoryError as error:
            raise PackError(f"{name} does not fit into the memory.", "Use a machine with more.") from error

    def _resolved(self, name: str) -> Path:
        path = self.path / name
        if not path.is_symlink():
            return path
        target = Path(os.path.realpath(path))
        if self._within is None or not target.is_relative_to(os.path.realpath(self._within)):
            raise PackError(
                f"{name} is a symbolic link to {os.readlink(path)}.",
                "Put the file itself there, or name what is on the Hub by its id.",
            )
        return target


def _read_plain(path: Path, name: str, limit: int) -> bytes:
    # not blocking: opening a pipe must not wait for a writer
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PackError(f"{name} is not a plain file.", "Remove it and get the file anew.")
        if status.st_size > limit:
            raise PackError(f"{name} has {status.st_size} bytes, more than {limit}.", _ANEW)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(status.st_size + 1)  # takes so much memory at once; one more shows what has grown
        if len(data) > status.st_size:  # as files of /proc are, which say that they are empty
            raise PackError(
                f"{name} has more than the {status.st_size} bytes that it said.", "Wait until it is written."
            )
        return data
    finally:
        os.close(descriptor)


def header_limit(tensors: int) -> int:
    """The most bytes that the header of a file of so many tensors may take, so that one of few tensors stays small."""
    return min((1 << 20) + (tensors << 10), MAX_HEADER_BYTES)


def read_tensors(data: bytes, name: str, most: int | None = None) -> dict[str, Tensor]:
    """The tensors in `data`, the content of the safetensors file `name`.

    The header is read twice: strictly first, since other readers settle a key that stands twice in other ways.

    Args:
        most: how many tensors the file may hold, where that is known.

    Raises:
        PackError: truncated, too long, or a header that does not fit.
    """
    header = int.from_bytes(data[:8], "little")
    limit = MAX_HEADER_BYTES if most is None else header_limit(most)
    if header > limit:
        raise PackError(f"{name} announces a header of {header} bytes, more than {limit}.", _ANEW)
    if len(data) < 8 + header:
        raise PackError(f"{name} is truncated: {len(data)} bytes of at least {8 + header}.", _ANEW)
    try:
        _check_header(strict_json.loads(data[8 : 8 + header], "its header"))
        return safetensors.torch.load(data)
    except PackError as error:
        raise PackError(f"{name} is not a sound safetensors file: {error.message}", _ANEW) from error
    except (safetensors.SafetensorError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # LookupError: a dtype that torch has not; the rest: numbers that the library hands on unchecked
        raise PackError(f"{name} is not a sound safetensors file: {error}.", _ANEW) from error


def _check_header(header: dict[str, Any]) -> None:
    for tensor, entry in header.items():
        if tensor == "__metadata__":
            continue
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape):
            raise PackError(f"the tensor {tensor} has the shape {shown(shape)}.", _ANEW)


def write_tensors(tensors: dict[str, Tensor]) -> bytes:
    """The content of a safetensors file; the order of the tensors does not matter.

    Raises:
        PackError: `read_tensors` would refuse it.
    """
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    header = int.from_bytes(data[:8], "little")
    for part, size, limit in (
        ("a header", header, header_limit(len(tensors))),
        ("a file", len(data), MAX_TENSOR_BYTES),
    ):
        if size > limit:
            raise PackError(
                f"{len(tensors)} tensors make {part} of {size} bytes, more than the {limit} that are read.",
                "Save less in one file: of a pack, fewer edits, or none of their values (values=False, --no-values).",
            )
    return data
