"""`hf-edit stats`: second moments collected ahead of time, and what the cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.options import Device, Dtype, Json, Model, Revision
from hf_edit.cli.output import print_json, print_table, readable_size
from hf_edit.cli.progress import Bars
from hf_edit.errors import ConfigError


if TYPE_CHECKING:
    from hf_edit.models.editable import EditableLinear, EditableModel
    from hf_edit.statistics.store import Stored

stats = typer.Typer(
    no_args_is_help=True,
    help="Collect the statistics that edits need ahead of time, or show those collected.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@stats.command()
def collect(
    model: Model,
    text: Annotated[
        str | None,
        typer.Option(
            help="A text file, dataset:ID:CONFIG:SPLIT:COLUMN, or self: the model writes it. [default: self]"
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens of plain text. [default: 5 per input of the widest edited map]")
    ] = None,
    conversations: Annotated[
        int | None, typer.Option(help="Questions that the model invents and answers, in the format chat.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="all, or numbers such as 18 or 3,4. [default: those edited by default]")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Prompt format: chat, plain or qa. [default: chat if the model has a template]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what the model writes itself.")] = 0,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Collect statistics into the cache, where `apply` with the same settings finds them."""
    from hf_edit.models.editable import EditableModel
    from hf_edit.models.loading import load_model
    from hf_edit.prompting import PromptFormat
    from hf_edit.statistics.config import StatisticsConfig
    from hf_edit.statistics.store import obtain, recipe_folder, stored

    given = {"text": text, "tokens": tokens, "conversations": conversations}
    config = StatisticsConfig.from_mapping({name: value for name, value in given.items() if value is not None})
    loaded, tokenizer = load_model(model, dtype=dtype, device=device, revision=revision)
    prompts = PromptFormat.of(format, tokenizer)
    view = EditableModel.of(loaded)
    linears = _chosen(view, layers)
    with Bars() as progress:
        obtain(view, prompts, linears, config, seed, progress)
    folder, names = recipe_folder(view, prompts, config, seed), {linear.name for linear in linears}
    _report(model, [e for e in stored(view) if e.path.parent == folder and e.linear in names], as_json)


@stats.command()
def show(
    model: Model, revision: Revision = None, device: Device = None, dtype: Dtype = "auto", as_json: Json = False
) -> None:
    """Show the statistics that the cache holds for a model in this dtype."""
    from hf_edit.models.editable import EditableModel
    from hf_edit.models.loading import load_model
    from hf_edit.statistics.store import stored

    loaded, _ = load_model(model, dtype=dtype, device=device, revision=revision)
    _report(model, stored(EditableModel.of(loaded)), as_json)


def _chosen(view: EditableModel, layers: str | None) -> list[EditableLinear]:
    from hf_edit.methods import default_config, method_for

    if layers is None:
        return method_for(default_config()).linears(view)
    if layers == "all":
        return view.linears
    try:
        numbers = sorted({int(part) for part in layers.split(",")})
    except ValueError as error:
        raise ConfigError(f"The layers {layers!r} are no numbers.", "Write all, 18 or 3,4.") from error
    wrong = [number for number in numbers if not 0 <= number < view.n_layers]
    if wrong:
        raise ConfigError(
            f"Layer {wrong[0]} does not exist: the model has {view.n_layers} blocks.",
            f"Choose layers from 0 to {view.n_layers - 1}.",
        )
    return [view.linears[number] for number in numbers]


def _report(model: str, entries: Iterable[Stored], as_json: bool) -> None:
    documents = [_document(entry) for entry in entries]
    if as_json:
        print_json({"model": model, "statistics": documents})
    elif not documents:
        typer.echo(f"the cache holds no statistics for {model}: hf-edit stats collect --model {model}")
    else:
        rows = (
            (d["linear"], d["source"], _counts(d["tokens"]), readable_size(d["bytes"]), d["file"]) for d in documents
        )
        print_table(f"Statistics of {model}", ("map", "text from", "tokens", "size", "file"), rows)


def _counts(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {count:,}" for part, count in tokens.items())


def _document(entry: Stored) -> dict[str, Any]:
    return {
        "linear": entry.linear,
        "source": entry.source,
        "tokens": entry.tokens,
        "file": str(entry.path),
        "bytes": entry.path.stat().st_size,
    }
