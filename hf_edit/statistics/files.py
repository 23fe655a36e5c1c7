"""Safetensors files of the cache: each whole or absent, and named when it cannot be read or written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_edit.errors import StatisticsError
from hf_edit.files.atomic import replacing


def write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Put the file in place, over an older one if there is one. The same contents give the same bytes.

    Raises:
        StatisticsError: the folder cannot be written.
    """
    with keeping_in(path.parent), replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=dict(metadata))
        _sort_metadata(temporary)


@contextmanager
def keeping_in(folder: Path) -> Iterator[None]:
    """Tell of a folder of the cache that cannot be written.

    Raises:
        StatisticsError: it cannot be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StatisticsError(
            f"The statistics cannot be kept in {folder}: {error}.",
            "Set HF_EDIT_CACHE to a folder on a disk with free space that you may write to.",
        ) from error


def _sort_metadata(path: Path) -> None:
    """safetensors writes metadata in an order that differs from run to run."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as `safetensors.safe_open` gives it.

    Raises:
        StatisticsError: it is missing, damaged, or lacks what the caller looks for inside this context.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StatisticsError(
            f"The statistics in {path} cannot be read: {error}.", "Delete the file; it is collected again."
        ) from error
