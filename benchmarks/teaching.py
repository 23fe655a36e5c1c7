"""Teaching facts at once or as a stream of batches, with a look at the model in between."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hf_edit
from hf_edit.batching import batched
from hf_edit.edits import EditSet
from hf_edit.methods import METHODS
from hf_edit.methods.msbp.config import MultiStepConfig
from hf_edit.models.editable import EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.solvers.low_rank import LowRankDelta, merged_when_wide, summed


Deltas = Mapping[str, LowRankDelta]
Look = Callable[[int, Deltas], None]
"""Called with the number of edits taught so far and the update that stands for them."""


@dataclass(frozen=True)
class Taught:
    """What came of it.

    Args:
        seconds: of teaching; looks in between do not count.
        adapter_bytes, pack_bytes: on disk, of the adapter alone and of all that was saved.
    """

    deltas: Deltas
    seconds: float
    adapter_bytes: int
    pack_bytes: int


def teach(
    view: EditableModel,
    tokenizer: Any,
    edits: EditSet,
    method: str,
    config: Any,
    batch: int | None = None,
    every: int = 0,
    look: Look | None = None,
) -> Taught:
    """Teach `edits` to the base, `batch` at a time, and call `look` behind each `every` batches but the last.

    The hypernetwork family streams by itself, into one pack. Another method computes one pack after the other, each on
    the model with those before it at work, and with their edits given as earlier.
    """
    streams = isinstance(config, MultiStepConfig)
    parts = [edits] if batch is None or streams else [EditSet(part) for part in batched(edits, batch)]
    watch = _Watch(every, len(edits), look)
    deltas: dict[str, LowRankDelta] = {}
    sizes, seen, seconds = [], 0, 0.0
    for part in parts:
        started, looked = time.perf_counter(), watch.seconds
        with at_work(view, deltas), watch.steps(method) if streams else nullcontext():
            pack = hf_edit.edit(view.model, tokenizer, part, config, earlier=[edits[:seen]] if seen else [])
        seconds += time.perf_counter() - started - (watch.seconds - looked)
        deltas = {name: merged_when_wide(delta) for name, delta in summed([deltas, pack.deltas]).items()}
        seen += len(part)
        sizes.append(_sizes(pack))
        if not streams:
            watch.batch_done(seen, deltas)
    return Taught(deltas, seconds, *map(sum, zip(*sizes, strict=True)))


def at_work(view: EditableModel, deltas: Deltas) -> Any:
    """The model with an update in place, on its device."""
    return view.updated({name: delta.to(device=view.device) for name, delta in deltas.items()})


class _Watch:
    """Counts batches, looks when it is time, and how long that took."""

    def __init__(self, every: int, total: int, look: Look | None) -> None:
        self.every, self.total, self.look = every, total, look
        self.batches, self.seconds = 0, 0.0

    def batch_done(self, seen: int, deltas: Deltas) -> None:
        self.batches += 1
        if self.look and self.every and self.batches % self.every == 0 and seen < self.total:
            started = time.perf_counter()
            self.look(seen, deltas)
            self.seconds += time.perf_counter() - started

    def steps(self, method: str) -> AbstractContextManager[Any]:
        """Inside, the method's stream is watched from outside: each batch ends with its last step."""
        owner = METHODS[method].method_class
        step, seen = owner.step, 0

        def watched(self_: Any, stream: Any, number: int, texts: Any, probe: Any) -> Any:
            nonlocal seen
            taken = step(self_, stream, number, texts, probe)
            if number == self_.steps - 1:
                seen += len(texts)
                self.batch_done(seen, stream.deltas)
            return taken

        return mock.patch.object(owner, "step", watched)


def _sizes(pack: EditPack) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pack"
        pack.save_pretrained(path)
        sizes = {file.name: file.stat().st_size for file in path.iterdir()}
    return sizes["adapter_model.safetensors"], sum(sizes.values())
