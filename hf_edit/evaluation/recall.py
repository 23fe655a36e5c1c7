"""What a model did when it was asked, kept from one evaluation to the next: many packs of one base ask it the same.

The unit is a whole call, with everything that was run in it, and not the single question: a row's rounding depends on
what it is batched with, so figures are, to the last bit, those of asking again, whatever was asked before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_edit._version import __version__
from hf_edit.errors import ConfigError
from hf_edit.methods.checkpoints import FolderCheckpoints


T = TypeVar("T")

ROOM = 2 << 30
"""Bytes of distributions that are kept."""


class Recall:
    """Of one model as it stands, asked through one tokenizer.

    Distributions over the vocabulary are the only large thing. They lie in files, so that what a process holds is what
    computing takes, which benches report; when there is no more room, later ones are not kept.

    Args:
        base: the model's `running_fingerprint`.
        folder: for distributions; whoever gives it removes it.
        room: bytes that they may take.
    """

    def __init__(self, base: str, folder: str | os.PathLike[str], room: int = ROOM) -> None:
        self.base = base
        self._files = FolderCheckpoints(folder, f"{__version__} {torch.__version__} {base}")
        self._room = room
        self._known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, ask: Callable[[], T]) -> T:
        """What asking finds, or found when it was asked under this key; not to be changed."""
        if key not in self._known:
            self._known[key] = ask()
        found: T = self._known[key]
        return found

    def tensors_once(self, key: Hashable, ask: Callable[[], list[Tensor]]) -> list[Tensor]:
        """As `once`, for large tensors on the CPU."""
        name = repr(key)
        kept = self._files.load(name)
        if kept is not None:
            return [kept[place] for place in sorted(kept)]
        found = ask()
        size = sum(tensor.nbytes for tensor in found)
        if size <= self._room:
            with suppress(ConfigError):  # a full disk costs time, not the evaluation
                self._files.save(name, {f"{place:06d}": tensor for place, tensor in enumerate(found)})
                self._room -= size
        return found
