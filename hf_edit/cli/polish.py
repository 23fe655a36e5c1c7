"""`hf-edit polish`: a pack in, the same edits refined out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.apply import check_target, pack_of
from hf_edit.cli.inputs import read_settings
from hf_edit.cli.options import Device, Dtype, Json, Model, Revision
from hf_edit.cli.output import print_json


if TYPE_CHECKING:
    from hf_edit.packs.pack import EditPack


def polish(
    pack: Annotated[str, typer.Argument(help="Pack to refine: its directory, or its id on the Hub.")],
    model: Model,
    out: Annotated[Path, typer.Option(help="Directory of the refined pack; a pack already there is replaced.")],
    config: Annotated[Path | None, typer.Option(help="Settings of polish, .json or .toml.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    answers: Annotated[bool, typer.Option(help="Ask the model every edit's prompt before and after.")] = True,
    as_json: Json = False,
) -> None:
    """Refine the update of a pack on the answers of all its edits at once.

    A run that was killed goes on where it stopped when the same command is given again.
    """
    from hf_edit.methods.polish.config import PolishConfig
    from hf_edit.packs.pack import EditPack

    check_target(out)
    start = EditPack.from_pretrained(pack)
    settings = {"format": start.manifest.prompt_format.name} | read_settings(config, set_ or (), {"seed": seed})
    chosen = PolishConfig.from_mapping(settings)

    def compute(loaded: Any, tokenizer: Any, **how: Any) -> EditPack:
        from hf_edit.api import polish as refined

        return refined(start, model=loaded, tokenizer=tokenizer, config=chosen, **how)

    result = pack_of(
        model,
        start.edits,
        out,
        compute,
        format=chosen.format,
        revision=revision,
        device=device,
        dtype=dtype,
        with_answers=answers,
    )
    if as_json:
        print_json(result.to_json())
    else:
        result.print()
