"""`hf-edit polish`: a pack in, the same edits refined out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.apply import attach_earlier, check_target, pack_of
from hf_edit.cli.inputs import read_settings
from hf_edit.cli.options import (
    Answers,
    Assignments,
    Config,
    Device,
    Dtype,
    Earlier,
    Json,
    Memory,
    Model,
    Out,
    Revision,
    Seed,
)
from hf_edit.cli.packs import pack_at


if TYPE_CHECKING:
    from hf_edit.packs.pack import EditPack


def polish(
    pack: Annotated[str, typer.Argument(help="Pack to refine: its directory, or its id on the Hub.")],
    model: Model,
    out: Out,
    config: Config = None,
    set_: Assignments = None,
    seed: Seed = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    earlier: Earlier = None,
    memory: Memory = None,
    answers: Answers = True,
    as_json: Json = False,
) -> None:
    """Refine the update of a pack on the answers of all its edits at once.

    A run that was killed goes on where it stopped when the same command is given again.
    """
    from hf_edit.methods.polish.config import PolishConfig
    from hf_edit.models.memory import parse_bytes

    budget = None if memory is None else parse_bytes(memory)
    check_target(out)
    start, before = pack_at(pack), [pack_at(one) for one in earlier or ()]
    settings = {"format": start.manifest.prompt_format.name} | read_settings(config, set_ or (), {"seed": seed})
    chosen = PolishConfig.from_mapping(settings)

    def compute(loaded: Any, tokenizer: Any, **how: Any) -> EditPack:
        from hf_edit.api import polish as refined

        attach_earlier(loaded, before)
        return refined(
            start, model=loaded, tokenizer=tokenizer, config=chosen, earlier=before, memory_budget=budget, **how
        )

    result = pack_of(
        model,
        out,
        compute,
        format=chosen.format,
        revision=revision,
        device=device,
        dtype=dtype,
        with_answers=answers,
    )
    result.report(as_json)
