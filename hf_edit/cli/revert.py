"""`hf-edit revert`: take edits of a pack back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.apply import check_target, pack_of
from hf_edit.cli.inputs import read_settings
from hf_edit.cli.options import Answers, Assignments, Config, Device, Dtype, Json, Model, Out, Pack, Revision, Seed
from hf_edit.cli.packs import pack_at


if TYPE_CHECKING:
    from hf_edit.packs.pack import EditPack


def revert(
    pack: Pack,
    ids: Annotated[list[str], typer.Argument(help="Ids of the edits to take back.", show_default=False)],
    model: Model,
    out: Out,
    config: Config = None,
    set_: Assignments = None,
    seed: Seed = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    answers: Answers = True,
    as_json: Json = False,
) -> None:
    """Take edits of a pack back: their questions get the base's own answers again, and the others stay."""
    from hf_edit.compose.config import CombineConfig

    check_target(out)
    start = pack_at(pack)
    chosen = CombineConfig.from_mapping(read_settings(config, set_ or (), {"seed": seed}))

    def compute(loaded: Any, tokenizer: Any, *, progress: Any, resume_dir: Any) -> EditPack:
        del resume_dir  # one solve: nothing to go on from
        return start.revert(ids, model=loaded, tokenizer=tokenizer, config=chosen, progress=progress)

    result = pack_of(
        model,
        out,
        compute,
        format=start.manifest.prompt_format.name,
        revision=revision,
        device=device,
        dtype=dtype,
        with_answers=answers,
        reverted=[edit for edit in start.edits if edit.id in set(ids)],
    )
    result.report(as_json)
