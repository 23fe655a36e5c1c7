"""What verbs read: files of edits, and settings from a file and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_edit import toml
from hf_edit.datasets.formats import FORMATS, read_cases
from hf_edit.datasets.records import edits_of
from hf_edit.edits import EditSet
from hf_edit.errors import ConfigError


READERS = tuple(FORMATS)
"""Layouts of files of edits."""


def read_edits(path: Path, layout: str, limit: int | None) -> EditSet:
    """The edits of a file, at most `limit`.

    Raises:
        ConfigError: the layout is unknown.
        InvalidEditError: the file cannot be read as edits.
    """
    return edits_of(read_cases(path, layout, limit), path)


def read_settings(file: Path | None, assignments: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a method: those of the file, then each `key=value`, then the options that were given.

    Keys may be dotted to reach nested settings; values are read as JSON, and as text where they are none.

    Raises:
        ConfigError: the file cannot be read, or an assignment has no `=`.
    """
    settings = {} if file is None else read_table(file)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            raise ConfigError(f"The setting {assignment!r} is no assignment.", "Write --set key=value.")
        _assign(settings, key.strip(), _value(value.strip()))
    return settings | {key: value for key, value in given.items() if value is not None}


def read_table(path: Path) -> dict[str, Any]:
    """The object in a .json or .toml file.

    Raises:
        ConfigError: there is none that can be read.
    """
    if path.suffix not in (".json", ".toml"):
        raise ConfigError(f"The config file {path} has the ending {path.suffix!r}.", "Use a .json or .toml file.")
    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if path.suffix == ".json" else toml.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no config file {path}.", "Give the path of an existing file.") from error
    except ValueError as error:  # of JSON, TOML and UTF-8 alike
        raise ConfigError(f"The config file {path} cannot be read: {error}.", "Correct the file.") from error
    if not isinstance(settings, dict):
        raise ConfigError(
            f"The config file {path} holds a {type(settings).__name__}.", 'Write an object: {"setting": value}.'
        )
    return settings


def parts(text: str, option: str) -> list[str]:
    """What an option names, separated by commas; ConfigError where that is nothing."""
    named = [part for part in map(str.strip, text.split(",")) if part]
    if not named:
        raise ConfigError(
            f"{option} {text!r} names nothing.", "Give one or more, separated by commas, or leave it out."
        )
    return named


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _assign(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"{parent!r} in {key!r} has no settings inside.", "Give it a value of its own.")
    settings[last] = value
