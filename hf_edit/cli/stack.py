"""`hf-edit stack`: one pack that teaches what several teach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.apply import check_target, pack_of
from hf_edit.cli.inputs import read_settings
from hf_edit.cli.options import Answers, Assignments, Config, Device, Dtype, Json, Model, Out, Revision, Seed
from hf_edit.cli.packs import pack_at
from hf_edit.errors import ConfigError


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
        typer.Option(
            help="Whose answer to a question stays: order (the first pack's), newest (the last one's), the last part "
            "of a pack's name, or its number from 1."
        ),
    ] = None,
    on_conflict: Annotated[
        str, typer.Option(help="What becomes of two answers to a question without --prefer: warn, or error.")
    ] = "warn",
    config: Config = None,
    set_: Assignments = None,
    seed: Seed = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    answers: Answers = True,
    as_json: Json = False,
) -> None:
    """Combine packs of one base into one; in any order with the same result, but for what --prefer says."""
    from hf_edit.compose.config import CombineConfig
    from hf_edit.methods.polish.config import PolishConfig

    check_target(out)
    given = [pack_at(pack) for pack in packs]
    preferred = _place(prefer, len(given)) if prefer and prefer.isdecimal() else prefer
    chosen = CombineConfig.from_mapping(read_settings(config, set_ or (), {"seed": seed}))

    def compute(loaded: Any, tokenizer: Any, *, progress: Any, resume_dir: Any) -> EditPack:
        from hf_edit.api import polish as refined
        from hf_edit.compose.adapters import name_of
        from hf_edit.compose.combine import stack as stacked

        how: dict[str, Any] = {"model": loaded, "tokenizer": tokenizer, "progress": progress}
        combining: dict[str, Any] = {
            "mode": mode,
            "names": [name_of(pack, i) for i, pack in enumerate(packs)],
            "prefer": preferred,
            "on_conflict": on_conflict,
            "config": chosen,
        }
        pack = stacked(given, **combining, **how)
        if not polish:
            return pack
        settings = PolishConfig(seed=chosen.seed)
        return refined(pack, config=settings, resume_dir=resume_dir, **how)

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


def _place(number: str, count: int) -> int:
    """The place of a pack, counted from 0, that a user counts from 1."""
    if not 1 <= int(number) <= count:
        raise ConfigError(
            f"--prefer {number} is none of {count} packs.",
            f"Use order, newest, a pack's name, or a number from 1 to {count}.",
        )
    return int(number) - 1
