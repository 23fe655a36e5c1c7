"""Settings as frozen dataclasses: read from mappings, written as JSON, every field checked against its limits."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from hf_edit.errors import ConfigError


S = TypeVar("S", bound="Settings")


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] | None = None,
    ascending: bool = False,
    recorded: bool = True,
) -> Any:
    """A dataclass field with its help text and limits; for tuples the limits hold for every element.

    Args:
        default: the value, or a `Settings` class whose defaults are meant.
        ascending: a tuple holds at least one element, each once and in order.
        recorded: it says what is computed; one that only says where to look for that is left out of `to_json`, and so
            of manifests and of the keys under which results are found again.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "choices": choices, "ascending": ascending}
    metadata = {"help": help, "recorded": recorded, **limits}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """Base of frozen dataclasses whose fields are made with `setting`.

    Raises:
        ConfigError: on construction, for a value of the wrong type or outside its limits.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in _fields(self):
            value = _coerced(getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            _check(field, value, hints[field.name])
            if field.metadata["ascending"] and isinstance(value, tuple):
                _check_ascending(field.name, value)

    @classmethod
    def from_mapping(cls: type[S], values: Mapping[str, Any]) -> S:
        """Build from plain JSON or TOML values; nested settings may be mappings.

        Raises:
            ConfigError: a name that is no setting, or a value outside its limits.
        """
        hints = typing.get_type_hints(cls)
        names = [field.name for field in _fields(cls)]
        arguments: dict[str, Any] = {}
        for name, value in values.items():
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                guess = f"Did you mean {near[0]!r}? " if near else ""
                raise ConfigError(
                    f"{name!r} is no setting of {cls.__name__}.", f"{guess}Settings: {', '.join(names)}."
                )
            nested = hints[name]
            if isinstance(nested, type) and issubclass(nested, Settings) and isinstance(value, Mapping):
                value = nested.from_mapping(value)
            arguments[name] = value
        return cls(**arguments)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_mapping` reads back, of the settings that are recorded."""
        plain: dict[str, Any] = {}
        for field in (one for one in _fields(self) if one.metadata["recorded"]):
            value = getattr(self, field.name)
            plain[field.name] = (
                value.to_json() if isinstance(value, Settings) else list(value) if isinstance(value, tuple) else value
            )
        return plain


def _fields(settings: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(settings)


def _coerced(value: Any, hint: Any) -> Any:
    """What JSON cannot say exactly: whole numbers for floats, lists for tuples."""
    if isinstance(value, list):
        return tuple(value)
    wants_float = float in (hint, *typing.get_args(hint))
    if wants_float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _check(field: dataclasses.Field[Any], value: Any, hint: Any) -> None:
    if not _is_a(value, hint):
        raise ConfigError(
            f"{field.name} = {value!r} is not of the type {_spoken(hint)}.",
            f"Give another value: {field.metadata['help']}",
        )
    limits = field.metadata
    for part in value if isinstance(value, tuple) else (value,):
        broken = None
        if limits["choices"] is not None and part is not None and part not in limits["choices"]:
            broken = f"is none of {', '.join(limits['choices'])}"
        elif isinstance(part, (int, float)):
            if not math.isfinite(part):
                broken = "is not finite"
            elif limits["at_least"] is not None and part < limits["at_least"]:
                broken = f"is below {limits['at_least']:g}"
            elif limits["above"] is not None and part <= limits["above"]:
                broken = f"is not above {limits['above']:g}"
            elif limits["at_most"] is not None and part > limits["at_most"]:
                broken = f"is above {limits['at_most']:g}"
        if broken:
            raise ConfigError(f"{field.name} = {part!r} {broken}.", f"Choose another value. {limits['help']}")


def _check_ascending(name: str, values: tuple[Any, ...]) -> None:
    one = name.removesuffix("s")
    if not values:
        raise ConfigError(f"{name} = [] names no {one}.", "Give at least one, or leave the setting out.")
    if list(values) != sorted(set(values)):
        raise ConfigError(f"{name} = {list(values)} are not ascending.", f"Give each {one} once, in order.")


def _is_a(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, option) for option in typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(part, typing.get_args(hint)[0]) for part in value)
    if hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def _spoken(hint: Any) -> str:
    return str(hint) if typing.get_origin(hint) else hint.__name__
