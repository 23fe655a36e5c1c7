"""All formats of files of edits by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

from hf_edit.datasets import akew, counterfact, editeverything, fever, mquake, ripple, unke, zsre
from hf_edit.datasets.records import Case, check_limit
from hf_edit.edits import EditSet
from hf_edit.errors import ConfigError


Reader: TypeAlias = Callable[[str | os.PathLike[str], int | None], list[Case]]


def _bare(read: Callable[[str | os.PathLike[str], int | None], EditSet]) -> Reader:
    """A reader of files that know nothing beside their edits."""
    return lambda path, limit: [Case(edit) for edit in read(path, limit)]


FORMATS: dict[str, Reader] = {
    "jsonl": _bare(lambda path, limit: EditSet.from_jsonl(path)[:limit]),
    "unke": _bare(unke.read),
    "editeverything": _bare(editeverything.read),
    "zsre": zsre.cases,
    "counterfact": counterfact.cases,
    "mquake": mquake.cases,
    "mquake-facts": mquake.facts,
    "akew": akew.cases,
    "ripple": ripple.cases,
    "fever": _bare(fever.read),
}
"""Name -> how a file is read."""


def read_cases(path: str | os.PathLike[str], layout: str, limit: int | None = None) -> list[Case]:
    """The cases of a file, at most `limit`, from the first on.

    Raises:
        ConfigError: the layout is unknown, or the limit is below 1.
        InvalidEditError: the file cannot be read as edits.
    """
    check_limit(limit)
    if layout not in FORMATS:
        raise ConfigError(f"The layout of edits {layout!r} is unknown.", f"Use one of {', '.join(FORMATS)}.")
    return FORMATS[layout](path, limit)
