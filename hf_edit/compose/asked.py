"""What the edits of a pack ask of its base."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from hf_edit.edits import Edit
from hf_edit.methods.joining.asked import Asked, asked_by_factors, tells_all
from hf_edit.methods.training.texts import prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat


@dataclass(frozen=True, eq=False)
class Taught:
    """An edit of a pack and what the pack asks of the model for it."""

    edit: Edit
    asked: Asked


def taught_by(
    model: EditableModel,
    prompts: PromptFormat,
    pack: EditPack,
    linears: Sequence[EditableLinear],
    without: Container[str] = (),
) -> Iterator[Taught]:
    """What each edit of the pack asks of the linears, but for those `without`, by their ids.

    A joined pack says in its source what every token was to get. Where a pack's source is missing, or names only the
    few keys that a closed form was solved at, its factors say what it does along the whole text, by one forward.
    """
    first = linears[0].layer
    deltas = {name: delta.to(device=model.device) for name, delta in pack.deltas.items()}
    places = [place for place, edit in enumerate(pack.edits) if edit.id not in without]
    edits = [pack.edits[place] for place in places]
    texts = prepared(model, [prompts.encode(edit.prompt, edit.target) for edit in edits], first)
    for place, edit, text in zip(places, edits, texts, strict=True):
        said = {} if pack.source is None else pack.source[place]
        if tells_all(said, pack.deltas, len(text.ids) - 1):
            values = {name: wanted.values.to(model.device) for name, wanted in said.items()}
            yield Taught(edit, Asked(text, values))
        else:
            yield Taught(edit, asked_by_factors(model, text, linears, first, deltas))
