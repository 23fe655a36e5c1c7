"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer


Model = Annotated[str, typer.Option(help="The base model: Hub id, directory or .gguf file.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the base model on the Hub.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:N, mps, or auto to spread a big model. [default: cuda, else cpu]")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for the checkpoint's own.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Pack = Annotated[str, typer.Argument(help="A pack: directory or Hub id.", show_default=False)]
