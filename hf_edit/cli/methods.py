"""`hf-edit methods`: the methods and their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_edit.cli.options import Json
from hf_edit.cli.output import print_facts, print_json, print_table
from hf_edit.errors import ConfigError
from hf_edit.settings import Settings


if TYPE_CHECKING:
    from hf_edit.methods import MethodEntry


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to see its settings.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List the editing methods, or the settings of one."""
    from hf_edit.methods import METHODS

    chosen = METHODS if name is None else {name: method_entry(name)}
    if as_json:
        print_json({n: {"summary": e.summary, "settings": list(_settings(e.config_class))} for n, e in chosen.items()})
    elif name is None:
        print_facts((n, e.summary + _if_default(e)) for n, e in chosen.items())
        typer.echo("\nSettings of one: hf-edit methods NAME. Give them as --set name=value or in a --config file.")
    else:
        rows = ((s["name"], _shown(s["default"]), s["help"]) for s in _settings(chosen[name].config_class))
        print_table(f"{name}: {chosen[name].summary}", ("setting", "default", "meaning"), rows)


def method_entry(name: str) -> MethodEntry:
    """The method of that name.

    Raises:
        ConfigError: there is none.
    """
    from hf_edit.methods import METHODS

    if name not in METHODS:
        raise ConfigError(f"The method {name!r} is unknown.", f"Use one of {', '.join(METHODS)}.")
    return METHODS[name]


def _if_default(entry: MethodEntry) -> str:
    from hf_edit.methods import default_config

    default = default_config()
    if type(default) is not entry.config_class:
        return ""
    return f" The default, with backend {default.to_json()['backend']}."


def _settings(config_class: type[Settings], prefix: str = "") -> Iterator[dict[str, Any]]:
    """Name, default and help of every setting, nested ones under dotted names."""
    defaults = config_class()
    for field in dataclasses.fields(defaults):  # type: ignore[arg-type]
        value = getattr(defaults, field.name)
        if isinstance(value, Settings):
            yield from _settings(type(value), f"{prefix}{field.name}.")
        else:
            choices = field.metadata.get("choices")
            yield {
                "name": prefix + field.name,
                "default": value,
                "help": field.metadata["help"],
                **({"choices": list(choices)} if choices else {}),
            }


def _shown(default: Any) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return "none" if default is None else str(default)
