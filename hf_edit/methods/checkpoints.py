"""Intermediate results on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_edit.errors import ConfigError
from hf_edit.files.atomic import replacing


def key_of(*parts: Any) -> str:
    """The key of a result that depends on these JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class NoCheckpoints:
    """Keeps nothing."""

    def load(self, key: str) -> dict[str, Tensor] | None:
        del key
        return None

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        del key, tensors


class FolderCheckpoints:
    """One file per key, whole or absent.

    Args:
        folder: created when the first result is saved.
        context: whatever else the results depend on (base, library versions); part of every file's name.
    """

    def __init__(self, folder: str | os.PathLike[str], context: str) -> None:
        self._folder = Path(folder)
        self._context = context

    def load(self, key: str) -> dict[str, Tensor] | None:
        """What was saved under `key`; a file that cannot be read counts as not there."""
        try:
            return load_file(self._path(key))
        except (OSError, SafetensorError):
            return None

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep `tensors` under `key`, all or nothing.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            with replacing(self._path(key)) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"Intermediate results cannot be kept in {self._folder}: {error}.",
                "Give a folder on a disk with free space that you may write to.",
            ) from error

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(f'{self._context} {key}'.encode()).hexdigest()[:32]}.safetensors"
