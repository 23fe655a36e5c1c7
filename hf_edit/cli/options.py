"""Options that several verbs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hf_edit.errors import ConfigError


def replaceable(folder: Path | None) -> Path | None:
    """A folder that is to be written or replaced as a whole, by the name that it has where links lead.

    Raises:
        ConfigError: it is one that the user is in: programs that run there would be left in a folder that is gone.
    """
    if folder is None:
        return None
    real, here = Path(os.path.realpath(folder)), Path(os.path.realpath(os.curdir))
    if here.is_relative_to(real):
        raise ConfigError(
            f"{folder} is the folder that you are in, or one around it, and would be replaced under you.",
            "Give a folder beside or inside it, or call this from elsewhere.",
        )
    return real if folder.is_absolute() else Path(os.path.relpath(real))


EVALUATORS = (
    *("reliability", "paraphrase", "locality", "unrelated", "strangers", "success", "portability", "multi_hop"),
    *("fact_check", "distraction", "long_form", "perplexity", "retention", "general"),
    *("teacher_forced", "anyedit_compat", "emsedit_compat"),
)
"""The names in `hf_edit.evaluation.evaluators`, which help is not to wait for."""


Model = Annotated[str, typer.Option(help="The base model: Hub id, directory or .gguf file.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the base model on the Hub.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:N, mps, or auto to spread a big model. [default: cuda, else cpu]")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for the checkpoint's own.")]
Config = Annotated[Path | None, typer.Option(help="Settings of the method, .json or .toml.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")
]
Earlier = Annotated[
    list[str] | None,
    typer.Option(help="A pack that stays attached, and is not to be disturbed; may be repeated."),
]
Memory = Annotated[
    str | None,
    typer.Option(help="Most memory beside the model, such as 2GB; less then runs at once. [default: all there is]"),
]
Only = Annotated[
    str | None,
    typer.Option(
        help=f"Evaluators, separated by commas, of {', '.join(EVALUATORS)}. [default: all that there are probes for]"
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Collection = Annotated[str | None, typer.Option(help="Collection to add it to: a slug, or a title, which makes one.")]
Out = Annotated[
    Path, typer.Option(help="Directory of the pack; a pack already there is replaced.", callback=replaceable)
]
Answers = Annotated[bool, typer.Option(help="Ask the model every edit's prompt before and after.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Pack = Annotated[str, typer.Argument(help="A pack: directory or Hub id.", show_default=False)]
