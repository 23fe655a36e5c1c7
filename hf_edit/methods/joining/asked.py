"""What an edit asks of the linears: values, to be added to their outputs along its own text."""

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
    """Values along one text. Its last token predicts nothing and is left out.

    Args:
        text: prompt and answer.
        values: linear name -> (T - 1, d_out), on the model's device; a linear that is not named is not to change.
    """

    text: Text
    values: Mapping[str, Tensor]

    def effort(self) -> float:
        """The sum of squares of the values."""
        return sum(float(values.double().square().sum()) for values in self.values.values())

    def source(self) -> dict[str, KeyValues]:
        """As packs keep it."""
        return {name: KeyValues(torch.arange(len(values)), values.cpu()) for name, values in self.values.items()}


def tells_all(said: Mapping[str, KeyValues], linears: Iterable[str], length: int) -> bool:
    """Whether what a source says of an edit is all that it asks: a value at each of `length` tokens for some of these
    linears, as a stack keeps it, whose other packs may change linears that this edit's own leaves alone."""
    every = torch.arange(length)
    return (
        bool(said)
        and set(said) <= set(linears)
        and all(torch.equal(kv.positions.cpu(), every) for kv in said.values())
    )


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
    return Asked(text, {name: delta.outputs(keys[name].to(delta.A)) for name, delta in deltas.items()})


def keys_of(model: EditableModel, asked: Asked, linears: Sequence[EditableLinear], first: int) -> dict[str, Tensor]:
    """Linear name -> (T - 1, d_in), what enters it along the text with the values of the blocks below in place."""
    entering = asked.text.entering
    with model.shifted({name: value[None] for name, value in asked.values.items()}):
        return _keys(model, asked.text.ids, entering, linears, first)


def _keys(
    model: EditableModel, ids: Tensor, entering: Tensor, linears: Sequence[EditableLinear], first: int
) -> dict[str, Tensor]:
    trace = model.trace(ids[None, :-1], inputs=linears, start={first: entering[None, :-1]})
    return {name: keys[0] for name, keys in trace.inputs.items()}
