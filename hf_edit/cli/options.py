"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Collection = Annotated[str | None, typer.Option(help="Collection to add it to: a slug, or a title, which makes one.")]
Out = Annotated[Path, typer.Option(help="Directory of the pack; a pack already there is replaced.")]
Answers = Annotated[bool, typer.Option(help="Ask the model every edit's prompt before and after.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Pack = Annotated[str, typer.Argument(help="A pack: directory or Hub id.", show_default=False)]
