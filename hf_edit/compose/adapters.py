"""The adapters around a model's linears, as PEFT puts them there: which there are, which are active."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from hf_edit.edits import EditSet
from hf_edit.errors import ComposeError, UnsupportedModelError
from hf_edit.packs.manifest import Manifest
from hf_edit.packs.pack import EditPack


Pack: TypeAlias = EditPack | str | os.PathLike[str]
"""A pack, its folder, or its id on the Hub."""
Origin: TypeAlias = tuple[Manifest, EditSet]
"""What a pack says of itself, and what it teaches."""
_ORIGIN = "_hf_edit_origin"


def name_of(pack: Pack, place: int) -> str:
    """What a pack is called among others: by its folder or id, or by its place, from 0, where it has none."""
    return f"pack {place + 1}" if isinstance(pack, EditPack) else os.path.basename(os.path.abspath(pack))


def check_host(model: object) -> None:
    """Raise UnsupportedModelError unless adapters can be put into `model`."""
    if not isinstance(model, (PreTrainedModel, PeftModel)):
        raise UnsupportedModelError(
            f"A {type(model).__name__} is neither a transformers model nor a PeftModel.",
            "Load the model with AutoModelForCausalLM.from_pretrained, and attach before compiling it.",
        )


def adapter_configs(model: nn.Module) -> dict[str, Any]:
    """Adapter name -> its PEFT configuration; the model's own dictionary where it has one."""
    return getattr(model, "peft_config", {})


def note_origin(model: nn.Module, name: str, origin: Origin) -> None:
    """Remember with an adapter what pack it is of; gone with the adapter."""
    setattr(adapter_configs(model)[name], _ORIGIN, origin)


def origin_of(model: nn.Module, name: str) -> Origin | None:
    """What pack an adapter is of; None where hf_edit did not attach it."""
    return getattr(adapter_configs(model)[name], _ORIGIN, None)


def check_not_attached(model: nn.Module, manifest: Manifest) -> None:
    """Raise ComposeError if the pack is attached: what is computed or measured beside it would count it twice."""
    identity = manifest.identity()
    for name in adapter_configs(model):
        origin = origin_of(model, name)
        if origin is not None and origin[0].identity() == identity:
            raise ComposeError(
                f"The pack is attached to the model already, as {name!r}.",
                f"Detach it first: hf_edit.detach(model, {name!r}).",
            )


def pack_for(model: PreTrainedModel | PeftModel, pack: Pack) -> EditPack:
    """A pack, also by its folder or id, that is sound, of this base, and not on it.

    Raises:
        PackError, HubError: it is not there, or not sound.
        BaseMismatchError, UnsupportedModelError: as `EditPack.verify`.
        ComposeError: it is attached.
    """
    pack = EditPack.coerce(pack)
    check_not_attached(model, pack.manifest)
    pack.verify(model)
    return pack


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Every adapter layer with the name of what it changes, from the outside in.

    That is the module that it wraps, or a parameter of this module.
    """
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in root.named_modules():
        if isinstance(module, BaseTunerLayer):
            own = re.sub(r"\.base_layer(?=\.|$)", "", name)
            yield f"{own}.{module.parameter_name}" if isinstance(module, ParamWrapper) else own, module


def holds(layer: BaseTunerLayer, name: str | None = None) -> bool:
    """Whether a layer holds weights of the adapter `name`, or of any adapter."""
    held = (getattr(layer, attribute) for attribute in layer.adapter_layer_names)
    return any(len(weights) if name is None else name in weights for weights in held)


def check_unmerged(model: nn.Module) -> None:
    """Raise ComposeError if adapters are merged: then a layer ignores the others, and its base weight is changed."""
    for module, layer in adapter_layers(model):
        if layer.merged:
            raise ComposeError(
                f"The adapter {layer.merged_adapters[0]!r} is merged into {module}.", "Unmerge the adapters first."
            )


def check_enabled(model: nn.Module) -> None:
    """Raise ComposeError if adapters are disabled: one attached now would work in some layers only."""
    for _, layer in adapter_layers(model):
        if layer.disable_adapters:
            raise ComposeError("The model's adapters are disabled.", "Call model.enable_adapters() first.")
