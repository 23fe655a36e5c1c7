"""What a folder of a bench comes to hold: the cells of all commands that measured into it, in one bench.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hf_edit.bench.cells import FORMAT_VERSION, cell_file
from hf_edit.errors import ConfigError
from hf_edit.files import strict_json


RESULT = "bench.json"


def joined(result: Mapping[str, Any], planned: Collection[str], folder: Path) -> dict[str, Any]:
    """A result with the other cells of the folder's bench.json in front of its own, as JSON.

    Args:
        planned: names of all cells of the result, also of those that are still to be measured.

    Raises:
        ConfigError: the other cells are of another base, version or evaluation, or a method or a data set of them has
            the name of another one of the result.
        PackError: bench.json is damaged.
    """
    result = strict_json.loads(strict_json.dumps(result), RESULT)
    other = _others(folder, planned)
    if other is None:
        return result
    _merged(_common(other), _common(result), folder)
    old, new = other["settings"], result["settings"]
    methods = _merged(_named(old["methods"], "label"), _named(new["methods"], "label"), folder)
    data = _merged(_named(old["data"], "name"), _named(new["data"], "name"), folder)
    seeds = sorted({*old["seeds"], *new["seeds"]})
    return {
        **result,
        "settings": {**new, "methods": [*methods.values()], "data": [*data.values()], "seeds": seeds},
        "edits": _merged(other["edits"], result["edits"], folder),
        "cells": [*other["cells"], *result["cells"]],
        "refused": [*other["refused"], *result["refused"]],
    }


def _others(folder: Path, planned: Collection[str]) -> dict[str, Any] | None:
    """What bench.json says of cells that are not planned; None of none. One whose file has been deleted is no more."""
    file = folder / RESULT
    if not file.is_file():
        return None
    result = strict_json.loads(file.read_bytes(), str(file))
    if result.get("format_version") != FORMAT_VERSION:
        raise _apart(folder, "version of hf_edit")
    cells = [one for one in result["cells"] if one["name"] not in planned and cell_file(folder, one["name"]).is_file()]
    refused = [one for one in result["refused"] if one["name"] not in planned]
    if not cells and not refused:
        return None
    used = {(one["data"], one["method"]) for one in (*cells, *refused)}
    data, methods = map(set, zip(*used, strict=True))
    settings = {
        **result["settings"],
        "methods": [row for row in result["settings"]["methods"] if row["label"] in methods],
        "data": [row for row in result["settings"]["data"] if row["name"] in data],
    }
    edits = {name: some for name, some in result["edits"].items() if name in data}
    return {**result, "settings": settings, "edits": edits, "cells": cells, "refused": refused}


def _common(result: Mapping[str, Any]) -> dict[str, Any]:
    """What all cells of one result share, by what it is called."""
    settings = result["settings"]
    return {
        "version of hf_edit": result["hf_edit"],
        "base": result["base"]["fingerprint"],
        "text": settings["text"],
        "table evaluate": settings["evaluate"],
    }


def _named(rows: Collection[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Rows of settings by name, without how many edits are taught together, which each cell says."""
    return {row[key]: {name: value for name, value in row.items() if name != "together"} for row in rows}


def _merged(one: Mapping[str, Any], other: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Both; ConfigError where something has one name in both and is not the same."""
    for name in one.keys() & other.keys():
        if one[name] != other[name]:
            raise _apart(folder, name)
    return {**one, **other}


def _apart(folder: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{folder / RESULT} holds cells of another {what}.",
        "Give the bench another folder, or delete that file to leave those cells out.",
    )
