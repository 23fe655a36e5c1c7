"""The editing methods by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_edit.errors import ConfigError
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.methods.anyedit.method import AnyEdit
from hf_edit.methods.base import EditMethod
from hf_edit.settings import Settings


@dataclass(frozen=True)
class MethodEntry:
    """One line of the registry."""

    config_class: type[Settings]
    method_class: Any
    summary: str


METHODS: dict[str, MethodEntry] = {
    "anyedit": MethodEntry(AnyEditConfig, AnyEdit, "Long, free-form answers, taught chunk by chunk; several at once."),
}


def method_for(config: Settings) -> EditMethod:
    """The method that these settings are of.

    Raises:
        ConfigError: they belong to no method.
    """
    for entry in METHODS.values():
        if isinstance(config, entry.config_class):
            method: EditMethod = entry.method_class(config)
            return method
    raise ConfigError(
        f"{type(config).__name__} is the configuration of no method.",
        f"Use one of {', '.join(entry.config_class.__name__ for entry in METHODS.values())}.",
    )
