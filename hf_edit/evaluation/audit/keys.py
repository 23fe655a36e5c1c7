"""What enters the changed linears along the texts that a pack lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from hf_edit.evaluation.audit.moments import recipe
from hf_edit.methods.base import KeyValues
from hf_edit.methods.joining.asked import tells_all
from hf_edit.methods.polish.method import rewritten
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.key_basis import Keys
from hf_edit.wordings import TEXT_KINDS


MOST_WORDINGS = 16
"""What a stranger's pack may have trained of each edit for its rewrites to be looked at."""
CONSISTENT = 0.5
"""A source is believed where the pack gives its values, but for this share of their norm: joining loses far less."""


def in_place(view: EditableModel, pack: EditPack) -> AbstractContextManager[None]:
    """The model as if the pack were attached."""
    return view.updated({name: delta.to(device=view.device) for name, delta in pack.deltas.items()})


def listed_keys(
    view: EditableModel, prompts: PromptFormat, pack: EditPack, linears: Sequence[EditableLinear]
) -> tuple[dict[str, Keys], dict[str, Keys]]:
    """Per linear the keys at which the source asked something, and those of all tokens of the listed edits and of the
    rewrites of their questions that the pack's settings had trained.

    Where several linears are changed, the latter are both as the base has them and as they are with the changes below
    in place, since training starts from the one and joins solve for the other; the former are with them in place.
    """
    asked: dict[str, Keys] = {}
    along = {linear.name: Keys(linear.d_in) for linear in linears}
    for index, edit in enumerate(pack.edits):
        ids = torch.tensor([prompts.encode(edit.prompt, edit.target).ids[:-1]], device=view.device)
        said = {} if pack.source is None else pack.source[index]
        source = {name: said[name] for name in along if name in said}
        versions = list(_inputs(view, pack, source, linears, ids))
        for inputs in versions:
            for name, keys in inputs.items():
                along[name].add(keys.T)
        for name, wanted in source.items():
            keys = versions[-1][name]
            places = wanted.positions[wanted.positions < len(keys)].to(keys.device)
            if len(places):
                asked.setdefault(name, Keys(keys.shape[1])).add(keys[places].T)
    for text in _reworded(view, prompts, pack):
        for inputs in _inputs(view, pack, {}, linears, torch.tensor([text.ids[:-1]], device=view.device)):
            for name, keys in inputs.items():
                along[name].add(keys.T)
    return asked, along


def _reworded(view: EditableModel, prompts: PromptFormat, pack: EditPack) -> list[Encoded]:
    """The same rewrites as were trained: they follow from the edits and the settings."""
    settings, _, seed = recipe(pack)
    count, tokens = (int(settings.get(name, 0)) for name in ("wordings", "wording_tokens"))
    kinds = settings.get("wording_kinds", TEXT_KINDS)
    given = bool(settings.get("train_paraphrases"))
    count = min(count, MOST_WORDINGS)
    return rewritten(prompts, pack.edits, count, kinds, tokens, seed, longest=view.max_length, given=given)


def _inputs(
    view: EditableModel,
    pack: EditPack,
    source: Mapping[str, KeyValues],
    linears: Sequence[EditableLinear],
    ids: Tensor,
) -> Iterator[dict[str, Tensor]]:
    """Linear name -> (T, d_in), in one or two versions."""

    def traced() -> dict[str, Tensor]:
        return {name: keys[0] for name, keys in view.trace(ids, inputs=linears).inputs.items()}

    yield traced()
    if len(linears) == 1:
        return  # nothing below it is changed
    if tells_all(source, [linear.name for linear in linears], ids.shape[1]):
        values = {name: wanted.values.to(view.device) for name, wanted in source.items()}
        with view.shifted({name: value[None] for name, value in values.items()}):
            inputs = traced()
        if _given(pack, inputs, values):
            yield inputs
            return
    with in_place(view, pack):
        yield traced()


def _given(pack: EditPack, inputs: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> bool:
    """Whether the pack gives these values at these inputs; else they were written to make anything look explained."""
    for name, wanted in values.items():
        delta, keys = pack.deltas[name].to(device=wanted.device), inputs[name].to(torch.float32)
        if (delta.outputs(keys) - wanted).norm() > CONSISTENT * wanted.norm():
            return False
    return True
