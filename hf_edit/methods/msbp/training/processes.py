"""Several processes that train one hypernetwork: each takes its share of the work on every batch, sums are shared.

All of them hold the same networks and come to the same numbers, so what they compute is what one process would,
up to the order in which floats are added.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from torch import Tensor, distributed

from hf_edit.methods.msbp.capture import Captured
from hf_edit.methods.msbp.stream import Stream
from hf_edit.methods.training.texts import Text


T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among `count`.

    Args:
        rank: from 0.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls, device: torch.device) -> Processes:
        """Those that `accelerate launch` or `torchrun` started; one where neither did."""
        if not _several():
            return cls()
        state = PartialState(cpu=device.type == "cpu")
        return cls(state.process_index, state.num_processes)

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share."""
        return items[self.rank :: self.count]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Put the sums over all processes in place of the tensors."""
        if self.count > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def first(self, tensors: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
        """What the first process has."""
        if self.count == 1:
            return tensors
        told: list[Mapping[str, Tensor] | None] = [tensors]
        distributed.broadcast_object_list(told)
        return told[0]

    def captured(self, stream: Stream, texts: Sequence[Text]) -> Captured:
        """As `Stream.captured`: each process runs its share of the texts."""
        if self.count == 1:
            return stream.captured(texts)
        model = stream.model
        dtype = torch.promote_types(model.dtype, torch.float32)
        owners = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(text.labels) for text in texts]))
        owners = owners.to(model.device)
        mine = self.mine(range(len(texts)))
        own = torch.isin(owners, torch.tensor(list(mine), device=model.device))
        part = stream.captured([texts[i] for i in mine]) if mine else None

        def whole(rows: Tensor | None, *width: int) -> Tensor:
            """Rows of all processes, of which every one but their owner adds zero."""
            total = torch.zeros(len(owners), *width, dtype=dtype, device=model.device)
            if rows is not None:
                total[own] = rows
            self.add_up([total])
            return total

        keys, gradients = (part.keys, part.gradients) if part else ({}, {})
        return Captured(
            {one.name: whole(keys.get(one.name), one.d_in) for one in stream.linears},
            {one.name: whole(gradients.get(one.name), one.d_out) for one in stream.linears},
            whole(part.losses if part else None),
            owners,
        )


def placed(device: str | None) -> tuple[bool, str | None]:
    """Whether this process is the first of those started together, and the device where it is to work.

    Args:
        device: as the user named it; none: one accelerator for each process, where there are any.
    """
    if not _several():
        return True, device
    state = PartialState(cpu=device == "cpu")
    return state.is_main_process, device or str(state.device)


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
