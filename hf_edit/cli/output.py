"""What verbs print: text and tables for people, one JSON document for programs.

Much of it was written by strangers, so all of it is made `visible`: nothing in a pack steers the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_edit.edits import Prompt
from hf_edit.errors import visible


def print_json(document: Any) -> None:
    """The only thing a verb writes to stdout under `--json`."""
    typer.echo(visible(json.dumps(document, indent=2, ensure_ascii=False)))


def print_facts(facts: Iterable[tuple[str, Any]]) -> None:
    """Name and value in two aligned columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(name, Text(visible(str(value))))
    Console().print(grid)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], lines: bool = False) -> None:
    """A table all of which is taken literally, never as markup; `lines` rules between rows of running text."""
    table = Table(title=Text(visible(title, keep=""), style="bold"), title_justify="left", show_lines=lines)
    for column in columns:
        table.add_column(Text(visible(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in row))
    Console().print(table)


def last_text(prompt: Prompt) -> str:
    """A prompt as one would say it: the text, or the last message of a chat."""
    return prompt if isinstance(prompt, str) else prompt[-1].content


def shortened(text: str, limit: int = 240) -> str:
    """One paragraph of at most `limit` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.lstat().st_size for file in folder.iterdir())


def readable_size(size: int) -> str:
    """Bytes in the unit a person would use."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1e3:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"
