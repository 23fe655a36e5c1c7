"""`hf-edit stats`: second moments collected ahead of time, and what the cache holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.options import Collection, Device, Dtype, Json, Model, Revision
from hf_edit.cli.output import print_facts, print_json, print_table, readable_size
from hf_edit.cli.progress import Bars
from hf_edit.errors import ConfigError
from hf_edit.processes import is_first, placed
from hf_edit.progress import Silent


if TYPE_CHECKING:
    from hf_edit.models.editable import EditableLinear, EditableModel
    from hf_edit.statistics.store import Stored

stats = typer.Typer(
    no_args_is_help=True,
    help="Collect the statistics that edits need ahead of time, show those collected, or share them on the Hub.",
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@stats.command(epilog="Example: hf-edit stats collect --model MODEL --layers all")
def collect(
    model: Model,
    text: Annotated[
        str | None,
        typer.Option(
            help="A text file, dataset:NAME:CONFIG:SPLIT:COLUMN, or self: the model writes it. [default: self]"
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Tokens of plain text. [default: 5 per input of the widest edited map]")
    ] = None,
    conversations: Annotated[int | None, typer.Option(help="Questions that the model invents and answers.")] = None,
    layers: Annotated[
        str | None, typer.Option(help="all, or numbers such as 18 or 3,4. [default: those edited by default]")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Prompt format: chat, plain or qa. [default: chat if the model has a template]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what the model writes itself.")] = 0,
    shard: Annotated[
        str | None, typer.Option(help="Collect over one part of the tokens, such as 1/4; `merge` joins all parts.")
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option(
            help="Keep so many leading directions, such as 256, or those that hold a share of the trace, such as 0.95."
        ),
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Collect statistics into the cache, where `apply` with the same settings finds them.

    A run that was killed goes on where it stopped when the same command is given again. Several processes, started by
    `accelerate launch` or `torchrun`, share the work; machines that do not know of each other each take a --shard.
    """
    from hf_edit.models.editable import EditableModel
    from hf_edit.models.loading import load_model
    from hf_edit.prompting import PromptFormat
    from hf_edit.statistics.compression import Compression
    from hf_edit.statistics.config import StatisticsConfig
    from hf_edit.statistics.shards import Shard
    from hf_edit.statistics.store import compressed, obtain, obtain_shard, recipe_folder, stored_in

    how = None if compress is None else Compression.parsed(compress)
    part = None if shard is None else Shard.parsed(shard)
    if how is not None and part is not None:
        raise ConfigError(
            f"A shard such as {shard} cannot be compressed: what is merged must be whole.",
            "Merge the shards first, then collect with --compress: nothing is collected twice.",
        )
    given = {"text": text, "tokens": tokens, "conversations": conversations}
    config = StatisticsConfig.from_mapping({name: value for name, value in given.items() if value is not None})
    loaded, tokenizer = load_model(model, dtype=dtype, device=placed(device), revision=revision)
    prompts = PromptFormat.of(format, tokenizer)
    view = EditableModel.of(loaded)
    linears = _chosen(view, layers)
    folder = recipe_folder(view, prompts, config, seed)
    with Bars() as bars:
        progress = bars if is_first() else Silent()
        if part is None:
            obtain(view, prompts, linears, config, seed, progress)
        else:
            folder = obtain_shard(view, prompts, linears, config, seed, progress, part)
    if not is_first():
        return
    names = {linear.name for linear in linears}
    entries = [entry for entry in stored_in(folder, view) if entry.linear in names]
    _report(model, entries if how is None else compressed(entries, how), as_json)


@stats.command(epilog="Example: hf-edit stats show --model MODEL")
def show(
    model: Model, revision: Revision = None, device: Device = None, dtype: Dtype = "auto", as_json: Json = False
) -> None:
    """Show the statistics that the cache holds for a model in this dtype."""
    from hf_edit.models.editable import EditableModel
    from hf_edit.models.loading import load_model
    from hf_edit.statistics.store import stored

    loaded, _ = load_model(model, dtype=dtype, device=device, revision=revision)
    _report(model, stored(EditableModel.of(loaded)), as_json)


@stats.command(epilog="Example: hf-edit stats merge shards/1-of-2 shards/2-of-2")
def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(help="Folders that `collect --shard` made: all of a collection.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Join the shards of a collection in the cache: as one process would have collected, up to rounding."""
    from hf_edit.statistics.merging import merge as merged

    files = merged(shards)
    if as_json:
        print_json({"shards": [str(folder) for folder in shards], "files": [str(path) for path in files]})
    else:
        print_facts((("merged", f"{len(shards)} shard(s), {len(files)} map(s)"), ("in", files[0].parent)))


Repository = Annotated[str, typer.Argument(help="A repository on the Hub: owner/name.", show_default=False)]


@stats.command(epilog="Example: hf-edit stats push me/stats --model MODEL --tag v1")
def push(
    repository: Repository,
    model: Model,
    private: Annotated[bool, typer.Option("--private", help="Of a new repository; refuse a public one.")] = False,
    tag: Annotated[str | None, typer.Option(help="A name for this version, which must be new.")] = None,
    branch: Annotated[str | None, typer.Option(help="Branch of the repository. [default: main]")] = None,
    collection: Collection = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Publish what the cache holds for a model, but for statistics of a private text."""
    from hf_edit.models.editable import EditableModel
    from hf_edit.models.loading import load_model
    from hf_edit.statistics.sharing import push_statistics

    loaded, _ = load_model(model, dtype=dtype, device=device, revision=revision)
    done = push_statistics(
        EditableModel.of(loaded), repository, tag=tag, branch=branch, private=private or None, collection=collection
    )
    if as_json:
        print_json({"model": model, "repository": done.repo_id, "commit": done.commit, "url": done.url})
    else:
        print_facts((("published", done.url), ("commit", done.commit)))


@stats.command(epilog="Example: hf-edit stats pull me/stats --model MODEL")
def pull(
    repository: Repository,
    model: Model,
    at: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository. [default: main]")] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Fetch the statistics of a model into the cache, where `apply` with the same settings finds them."""
    from hf_edit.models.editable import EditableModel
    from hf_edit.models.loading import load_model
    from hf_edit.statistics.sharing import pull_statistics

    loaded, _ = load_model(model, dtype=dtype, device=device, revision=revision)
    origin, new = pull_statistics(EditableModel.of(loaded), repository, revision=at)
    if as_json:
        files = [str(path) for path in new]
        print_json({"model": model, "repository": repository, "commit": origin.commit, "files": files})
    else:
        print_facts((("fetched", f"{len(new)} new file(s)"), ("from", repository), ("commit", origin.commit)))


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
    for folder in dict.fromkeys(Path(document["file"]).parent for document in documents if not as_json):
        inside = (document for document in documents if Path(document["file"]).parent == folder)
        rows = ((one["linear"], one["source"], _counts(one["tokens"]), _size(one)) for one in inside)
        print_table(f"Statistics of {model}", ("map", "text from", "tokens", "size"), rows)
        print_facts((("in", folder),))


def _size(document: Mapping[str, Any]) -> str:
    """With what compression cost at most, if there was any."""
    size, errors = readable_size(document["bytes"]), document["compression_errors"]
    return f"{size}, error {max(errors.values()):.1%}" if errors else size


def _counts(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {count:,}" for part, count in tokens.items())


def _document(entry: Stored) -> dict[str, Any]:
    return {
        "linear": entry.linear,
        "source": entry.source,
        "tokens": entry.tokens,
        "compression_errors": entry.errors,
        "file": str(entry.path),
        "bytes": entry.path.stat().st_size,
    }
