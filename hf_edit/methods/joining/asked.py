"""What an edit asks of the linears: keys, which enter them along its own text, and values, to be added there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_edit.methods.base import KeyValues
from hf_edit.methods.training.texts import Text
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.solvers.low_rank import LowRankDelta


@dataclass(frozen=True, eq=False)
class Asked:
    """Keys and values along one text. Its last token predicts nothing and is left out.

    Args:
        text: prompt and answer.
        keys: linear name -> (T - 1, d_in), with the values of the blocks below in place.
        values: linear name -> (T - 1, d_out), in the factors' dtype; a linear that is not named is not to
            change.
    """

    text: Text
    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    def effort(self) -> float:
        """The sum of squares of the values."""
        return sum(float(values.double().square().sum()) for values in self.values.values())

    def source(self) -> dict[str, KeyValues]:
        """As packs keep it."""
        return {name: KeyValues(torch.arange(len(values)), values.cpu()) for name, values in self.values.items()}


def tells_all(said: Mapping[str, KeyValues], linears: Iterable[str], length: int) -> bool:
    """Whether what a source says of an edit has a value for each of these linears at each of `length` tokens."""
    every = torch.arange(length)
    return set(said) == set(linears) and all(torch.equal(kv.positions.cpu(), every) for kv in said.values())


def asked_by_factors(
    model: EditableModel,
    text: Text,
    linears: Sequence[EditableLinear],
    first: int,
    deltas: Mapping[str, LowRankDelta],
) -> Asked:
    """What an update does along a text.

    Args:
        first: the block that the text enters.
        deltas: the update, on the model's device.
    """
    entering = text.entering
    with model.updated(deltas):
        keys = _keys(model, text.ids, entering, linears, first)
    values = {name: delta.outputs(keys[name].to(delta.A)) for name, delta in deltas.items()}
    return Asked(text, keys, values)


def asked_by_values(
    model: EditableModel, text: Text, linears: Sequence[EditableLinear], first: int, values: Mapping[str, Tensor]
) -> Asked:
    """What a source says, with the keys found again by one forward of the base."""
    values = {name: value.to(model.device) for name, value in values.items()}
    entering = text.entering
    with model.shifted({name: value[None] for name, value in values.items()}):
        keys = _keys(model, text.ids, entering, linears, first)
    return Asked(text, keys, values)


def _keys(
    model: EditableModel, ids: Tensor, entering: Tensor, linears: Sequence[EditableLinear], first: int
) -> dict[str, Tensor]:
    trace = model.trace(ids[None, :-1], inputs=linears, start={first: entering[None, :-1]})
    return {name: keys[0] for name, keys in trace.inputs.items()}
