"""`hf-edit stack`: one pack that teaches what several teach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.apply import check_target, pack_of
from hf_edit.cli.inputs import read_settings
from hf_edit.cli.options import Answers, Assignments, Config, Device, Dtype, Json, Model, Out, Revision, Seed


if TYPE_CHECKING:
    from hf_edit.packs.pack import EditPack


def stack(
    packs: Annotated[list[str], typer.Argument(help="Packs: directories or Hub ids.", show_default=False)],
    model: Model,
    out: Out,
    mode: Annotated[
        str,
        typer.Option(help="solve: one solve over all edits; add: the exact sum, in which packs disturb each other."),
    ] = "solve",
    polish: Annotated[bool, typer.Option(help="Refine the result on all its edits.")] = False,
    prefer: Annotated[
        str | None,
        typer.Option(help="Whose answer to a question stays: order (the first pack's), newest, or a number from 1."),
    ] = None,
    config: Config = None,
    set_: Assignments = None,
    seed: Seed = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    answers: Answers = True,
    as_json: Json = False,
) -> None:
    """Combine packs of one base into one, in any order with the same result."""
    from hf_edit.compose.config import CombineConfig
    from hf_edit.packs.pack import EditPack

    check_target(out)
    given = [EditPack.from_pretrained(pack) for pack in packs]
    chosen = CombineConfig.from_mapping(read_settings(config, set_ or (), {"seed": seed}))

    def compute(loaded: Any, tokenizer: Any, *, progress: Any, resume_dir: Any) -> EditPack:
        from hf_edit.api import polish as refined
        from hf_edit.compose.combine import stack as stacked

        how: dict[str, Any] = {"model": loaded, "tokenizer": tokenizer, "progress": progress}
        combining: dict[str, Any] = {
            "mode": mode,
            "prefer": int(prefer) - 1 if prefer and prefer.isdecimal() else prefer,
            "config": chosen,
        }
        pack = stacked(given, **combining, **how)
        return refined(pack, resume_dir=resume_dir, **how) if polish else pack

    result = pack_of(
        model,
        out,
        compute,
        format=given[0].manifest.prompt_format.name,
        revision=revision,
        device=device,
        dtype=dtype,
        with_answers=answers,
    )
    result.report(as_json)
