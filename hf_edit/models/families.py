"""The table of known architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType

from hf_edit import toml


@dataclass(frozen=True)
class Family:
    """Where the parts of an architecture lie.

    Args:
        name: `model_type` of the config, or "structural" for one that was found by its structure.
        blocks: path of the list of decoder blocks inside the model.
        mlp_out: paths, inside a block, of the linear maps that write to the residual stream, in order of preference:
            of each block the first that it has is edited.
        experts: those of them that are parameters of fused experts -> path of the module that computes the mixture.
    """

    name: str
    blocks: str
    mlp_out: tuple[str, ...]
    experts: Mapping[str, str] = field(default_factory=dict, hash=False)


@cache
def families() -> MappingProxyType[str, Family]:
    """The table, `model_type` -> `Family`."""
    text = resources.files("hf_edit.models").joinpath("families.toml").read_text(encoding="utf-8")
    table = toml.loads(text)
    return MappingProxyType({name: Family(name, x["blocks"], tuple(x["mlp_out"])) for name, x in table.items()})
