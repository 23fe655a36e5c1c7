"""`hf-edit report`: what a bench found, on the terminal, as a page and as pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_edit.cli.options import Json
from hf_edit.cli.output import print_facts, print_json, print_table
from hf_edit.errors import ConfigError


if TYPE_CHECKING:
    from hf_edit.reports.result import Result


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a bench, or its bench.json.", show_default=False)],
    html: Annotated[
        Path | None, typer.Option(help="File for a page with tables, pictures and answers; needs nothing beside it.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a bench found. Pictures and the page need the extra `plots`."""
    from hf_edit.reports.page import page
    from hf_edit.reports.pictures import PICTURES, drawn
    from hf_edit.reports.result import read_result

    result = read_result(folder)
    written = []
    if png is not None:
        _folder(png)
        for name, data in drawn(result, "png").items():
            (png / f"{name}.png").write_bytes(data)
            written.append(png / f"{name}.png")
        for stale in set(PICTURES) - {path.stem for path in written}:
            (png / f"{stale}.png").unlink(missing_ok=True)
    if html is not None:
        html.write_text(page(result, {n: d.decode() for n, d in drawn(result, "svg").items()}), encoding="utf-8")
        written.append(html)
    if as_json:
        print_json({"written": [str(path) for path in written], **dataclasses.asdict(result)})
    else:
        print_report(result)
        print_facts(("written", path) for path in written)


def print_report(result: Result) -> None:
    """A table for each data set, and what was refused."""
    from hf_edit.reports.tables import costs, kept, taught

    for data, rows in result.by_data().items():
        print_table(f"{data}: what was taught", *taught(rows, intervals=False))
        print_table(f"{data}: what was disturbed", *kept(rows, intervals=False))
        print_table(f"{data}: what it cost", *costs(rows))
    if result.refused:
        print_table("Not measured", ("cell", "why"), [(one.name, one.refused) for one in result.refused])


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path} is a file, no folder.", "Choose another folder.") from None
