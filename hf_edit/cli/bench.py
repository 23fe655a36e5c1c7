"""`hf-edit bench`: methods beside baselines, on data sets, under one evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.inputs import READERS, parts, read_table
from hf_edit.cli.options import Device, Dtype, Json, Model, Only, Revision
from hf_edit.cli.output import print_json
from hf_edit.cli.progress import Bars
from hf_edit.cli.report import print_report
from hf_edit.errors import ConfigError
from hf_edit.processes import is_first, placed


if TYPE_CHECKING:
    from hf_edit.bench.config import BenchConfig


def bench(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the results; finished cells in it are kept.")],
    config: Annotated[
        Path | None, typer.Argument(help="Methods, data sets and sizes, .toml or .json.", show_default=False)
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, or labels of the file, separated by commas; none, in-context and retrieval are baselines."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME | LAYOUT=FILE", help=f"A data set of the file, or another; layouts: {', '.join(READERS)}."
        ),
    ] = None,
    records: Annotated[str | None, typer.Option(help="Which edits of each data set: ranges as 0:100.")] = None,
    together: Annotated[str | None, typer.Option(help="How many edits one pack teaches, as 1,100.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, as 0,1,2.")] = None,
    format: Annotated[str | None, typer.Option(help="Prompt format: chat, plain or qa.")] = None,
    only: Only = None,
    text: Annotated[str | None, typer.Option(help="UTF-8 text whose perplexity is measured.")] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Of the data's files. [default: $HF_EDIT_DATA]")] = None,
    keep_packs: Annotated[
        bool, typer.Option("--keep-packs", help="Save every pack, with its figures and card, in OUT/packs.")
    ] = False,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Measure methods on data sets, with the unedited model and others that only read the facts beside them.

    What is to be measured stands in a file, or in the options, which take precedence over it and choose among its rows
    and data sets by name. A bench that was killed goes on where it stopped when the same command is given again, and
    one folder gathers what several commands measure. `accelerate launch` shares the cells.
    """
    from hf_edit.bench.config import BenchConfig
    from hf_edit.bench.results import RESULT
    from hf_edit.bench.run import run_bench
    from hf_edit.models.loading import load_model
    from hf_edit.reports.result import read_result

    values = {} if config is None else read_table(config)
    given = {
        "methods": None if methods is None else _methods(parts(methods, "--methods"), values),
        "data": None if data is None else [_data(one, values) for one in data],
        "seeds": None if seeds is None else _numbers(seeds, "--seeds"),
        "text": text,
    }
    values |= {key: value for key, value in given.items() if value is not None}
    for_all = {
        "records": records,
        "together": None if together is None else _numbers(together, "--together"),
        "format": format,
        "evaluators": None if only is None else parts(only, "--only"),
    }
    settings: BenchConfig = BenchConfig.from_mapping(_overridden(values, for_all))
    base, tokenizer = load_model(model, dtype=dtype, device=placed(device), revision=revision)
    with Bars() as progress:
        result = run_bench(
            base, tokenizer, settings, out, data_folder=data_folder, keep_packs=keep_packs, progress=progress
        )
    if not is_first():
        return
    if as_json:
        print_json(result)
    else:
        print_report(read_result(out / RESULT))


def _overridden(values: dict[str, Any], for_all: dict[str, Any]) -> dict[str, Any]:
    """The bench with what was given for all of its data sets."""
    data = values.get("data")
    if not isinstance(data, list):
        raise ConfigError("The bench names no data.", "Give --data LAYOUT=FILE, or a file with [[data]] tables.")
    given = {key: value for key, value in for_all.items() if value is not None}
    return {**values, "data": [{**one, **given} if isinstance(one, dict) else one for one in data]}


def _methods(names: Iterable[str], values: dict[str, Any]) -> list[Any]:
    """Rows of the file by their labels; what is none of these is a method."""
    from hf_edit.bench.config import Method

    labelled = _by_name("methods", values, lambda one: Method.of(one).label)
    return [labelled.get(name, name) for name in names]


def _by_name(key: str, values: dict[str, Any], name_of: Callable[[Any], str]) -> dict[str, Any]:
    """Tables of the file by name; ConfigError where two have one."""
    from hf_edit.bench.config import check_once

    named = [(name_of(one), one) for one in _tables(values, key)]
    check_once(key, [name for name, _ in named])
    return dict(named)


def _data(text: str, values: dict[str, Any]) -> dict[str, Any]:
    from hf_edit.bench.config import Data

    layout, equals, file = text.partition("=")
    if layout and equals and file:
        return {"layout": layout, "file": file}
    named = _by_name("data", values, lambda one: Data.of(one).name)
    if text not in named:
        known = f" The file's own: {', '.join(named)}." if named else ""
        raise ConfigError(
            f"--data {text!r} names no file.", f"Write --data LAYOUT=FILE, such as zsre=zsre_eval.json.{known}"
        )
    return named[text]


def _tables(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = values.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in parts(text, option)]
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} are no whole numbers.", "Separate them by commas, as in 1,100."
        ) from None
