"""The editing methods by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_edit.errors import ConfigError
from hf_edit.methods.anyedit.config import AnyEditConfig, UnKEConfig
from hf_edit.methods.anyedit.method import AnyEdit, UnKE
from hf_edit.methods.base import EditMethod
from hf_edit.methods.finetune.config import FinetuneConfig
from hf_edit.methods.finetune.method import Finetune
from hf_edit.methods.memit.config import AlphaEditConfig, MemitConfig
from hf_edit.methods.memit.method import AlphaEdit, Memit
from hf_edit.methods.msbp.config import (
    EMSEditConfig,
    MalmenConfig,
    MendConfig,
    RLEditConfig,
    UltraEditConfig,
)
from hf_edit.methods.msbp.method import EMSEdit, Malmen, Mend, RLEdit, UltraEdit
from hf_edit.methods.polish.config import PolishConfig
from hf_edit.methods.polish.method import Polish
from hf_edit.settings import Settings


@dataclass(frozen=True)
class MethodEntry:
    """One line of the registry."""

    config_class: type[Settings]
    method_class: Any
    summary: str


METHODS: dict[str, MethodEntry] = {
    "anyedit": MethodEntry(AnyEditConfig, AnyEdit, "Long, free-form answers, taught chunk by chunk; several at once."),
    "unke": MethodEntry(UnKEConfig, UnKE, "Long answers as one target each, for which a whole block is trained."),
    "memit": MethodEntry(MemitConfig, Memit, "Short facts about a subject, all in one solve."),
    "alphaedit": MethodEntry(AlphaEditConfig, AlphaEdit, "Short facts, solved where what is to stay has little."),
    "emsedit": MethodEntry(EMSEditConfig, EMSEdit, "Hundreds of short facts from gradients, in a few passes."),
    "mend": MethodEntry(MendConfig, Mend, "Gradients as rank-one updates, added up."),
    "malmen": MethodEntry(MalmenConfig, Malmen, "Gradients aggregated by least squares."),
    "rledit": MethodEntry(RLEditConfig, RLEdit, "MALMEN for streams: its network is trained along a sequence."),
    "ultraedit": MethodEntry(UltraEditConfig, UltraEdit, "Standardised gradients, never trained."),
    "finetune": MethodEntry(FinetuneConfig, Finetune, "Plain LoRA with the base's other answers held: a baseline."),
    "polish": MethodEntry(PolishConfig, Polish, "The update itself, optimised on the answers of all edits at once."),
}


def default_config() -> Settings:
    """The settings used where none are given: what measured best on one edit and many, long and short."""
    return AnyEditConfig(backend="direct")


def method_for(config: Settings) -> EditMethod:
    """The method that these settings are of.

    Raises:
        ConfigError: they belong to no method.
    """
    for entry in METHODS.values():
        if type(config) is entry.config_class:  # settings of one method may extend another's
            method: EditMethod = entry.method_class(config)
            return method
    raise ConfigError(
        f"{type(config).__name__} is the configuration of no method.",
        f"Use one of {', '.join(entry.config_class.__name__ for entry in METHODS.values())}.",
    )
