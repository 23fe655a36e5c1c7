"""Libraries that only some evaluations need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hf_edit.errors import ConfigError


def needed(module: str, package: str, extra: str) -> Any:
    """A module of a library that comes with an extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"The package {package} is not installed ({error}).", f"Run: pip install 'hf-edit[{extra}]'"
        ) from error
