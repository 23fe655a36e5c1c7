"""Packs on and off a live model: `attach` and `detach`.

Both are all or nothing, keep every flag of what they do not own, and know nothing of merging: a detached pack's layers
are taken out of the model and the base's own modules put back, so the base is what it was, bit for bit.
"""

from __future__ import annotations

import math
import os
import re
import warnings

import torch
from peft import PeftModel, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from hf_edit.compose.adapters import (
    adapter_configs,
    adapter_layers,
    check_enabled,
    check_host,
    check_not_attached,
    check_unmerged,
    holds,
    note_origin,
)
from hf_edit.compose.structure import Structure
from hf_edit.errors import ComposeError, ConfigError, HfEditError
from hf_edit.packs.layout import adapter_keys, sparse_keys
from hf_edit.packs.pack import EditPack
from hf_edit.sparse.config import PEFT_TYPE


_TYPES = {"portable": PeftType.LORA, "sparse": PEFT_TYPE}
"""Layout -> the `peft_type` of its adapters."""


def attach(
    model: PreTrainedModel | PeftModel,
    pack: EditPack | str | os.PathLike[str],
    name: str | None = None,
    *,
    strength: float = 1.0,
    verify: bool = True,
) -> str:
    """Put a pack on a model, beside the adapters that are active there, which stay so.

    The result computes what the model's own way of loading the pack computes: a transformers model has the factors
    in the dtype of its weights, a PeftModel in fp32. A pack read in the layout sparse becomes a sparse adapter, but
    in a PeftModel of LoRA adapters, which takes no others, a LoRA adapter that computes the same.

    Args:
        pack: a pack, its folder, or its id on the Hub.
        name: of the adapter; made from the id of the pack's first edit when None. Characters other than letters,
            digits, `_` and `-` become `_`.
        strength: what the change is multiplied with; 1 is as it was computed. `set_scale` of PEFT's layers changes it.
        verify: compare the weights that the pack changes with those it was computed on, by digest. Not possible on
            quantised models. Everything else is checked in any case.

    Returns:
        The adapter's name, for `detach`, `model.set_adapter`, ....

    Raises:
        ConfigError: the strength is no finite number.
        PackError, BaseMismatchError, UnsupportedModelError: as `EditPack.from_pretrained` and `EditPack.verify`.
        ComposeError: the name is taken, the pack is attached already, or the adapters that are there stand in the way.
            The model is then as before.
    """
    check_host(model)
    if not math.isfinite(strength):
        raise ConfigError(f"The strength is {strength}.", "Give a finite number; 1 is the change as it was computed.")
    pack = EditPack.coerce(pack)
    check_not_attached(model, pack.manifest)
    name = _adapter_name(pack.edits[0].id if name is None else name)
    layout = _check_room(model, pack, name)
    pack.verify(model, weights=verify)
    before = Structure(model)
    active = {layer: list(layer.active_adapters) for _, layer in adapter_layers(model)}
    try:
        with torch.random.fork_rng(devices=[]):  # PEFT draws initial factors before ours replace them
            _inject(model, pack, layout, name)
        _fill(model, pack, layout, name)
        _settle(model, name, before, active)
        if strength != 1:
            for _, layer in adapter_layers(model):
                layer.set_scale(name, strength)  # of a layer without the adapter nothing
        note_origin(model, name, (pack.manifest, pack.edits))
    except BaseException as error:
        before.restore()
        if isinstance(error, HfEditError) or not isinstance(error, Exception):
            raise
        raise ComposeError(
            f"The pack could not be attached: {error}", "Detach the other adapters, or load the model anew."
        ) from error
    return name


def detach(model: PreTrainedModel | PeftModel, name: str) -> None:
    """Take an adapter off a model, also one that came by `model.load_adapter`; the others stay as they are.

    Modules around which no adapter is left are the base's own again. The base has then every bit, and every name in
    `save_pretrained`, that it had before the adapter came.

    Raises:
        ComposeError: there is no such adapter, it is merged, it trains parts of the base itself, or it is the only
            one of a PeftModel, which cannot be without. The model is then as before.
    """
    check_host(model)
    _check_detachable(model, name)
    before = Structure(model)
    try:
        _remove(model, name)
        _unwrap(model)
        _forget(model, name)
        before.restore_trainable()
    except BaseException:
        before.restore()
        raise


def _adapter_name(wish: str) -> str:
    name = re.sub(r"[^0-9A-Za-z_-]+", "_", wish)
    # torch refuses names of its containers' own attributes; PEFT mistakes parts of its prefix for keys of weights
    if not name.strip("_-") or hasattr(nn.ModuleDict(), name) or name in "lora_":
        name = f"hf_edit_{name}".rstrip("_-")
    return name


def _check_room(model: nn.Module, pack: EditPack, name: str) -> str:
    """The layout in which the model takes the pack.

    Raises:
        ComposeError: none, or the name is taken, or adapters stand in the way.
    """
    configs = adapter_configs(model)
    if name in configs:
        raise ComposeError(f"The model has an adapter {name!r} already.", "Detach it, or pass another name=.")
    layouts = ["sparse", "portable"] if pack.manifest.layout == "sparse" else ["portable"]
    if isinstance(model, PeftModel):  # which holds adapters of one type
        layouts = [layout for layout in layouts if _TYPES[layout] == model.peft_type]
    if not layouts:
        kind = next(iter(configs.values())).peft_type.value
        raise ComposeError(
            f"The model is a PeftModel of type {kind}, which takes no LoRA adapters.", "Attach to the base model."
        )
    check_unmerged(model)
    check_enabled(model)
    return layouts[0]


def _inject(model: PreTrainedModel | PeftModel, pack: EditPack, layout: str, name: str) -> None:
    """Wrap the pack's modules, with random factors."""
    config = pack.peft_config(layout)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # adapters side by side: meant
        warnings.filterwarnings("ignore", "Adapter name .* should not be contained in the prefix")
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            inject_adapter_in_model(config, model, name)
            model._hf_peft_config_loaded = True


@torch.no_grad()
def _fill(model: nn.Module, pack: EditPack, layout: str, name: str) -> None:
    layers = {module: layer for module, layer in adapter_layers(model) if holds(layer, name)}
    different = sorted(set(layers) ^ set(pack.deltas))
    if different:
        raise ComposeError(
            f"PEFT wrapped other modules than the pack changes: {', '.join(different[:3])}.", "Load the model anew."
        )
    state = pack.adapter_state_dict(layout)
    for module, layer in layers.items():
        if layout == "sparse":
            held = layer.hf_edit_sparse_columns[name], layer.hf_edit_sparse_values[name]
            keys = sparse_keys(module)
        else:
            held = layer.lora_A[name].weight, layer.lora_B[name].weight
            keys = adapter_keys(module, module in pack.manifest.fused)
        for tensor, key in zip(held, keys, strict=True):
            tensor.copy_(state[key])


def _settle(model: nn.Module, name: str, before: Structure, active: dict[BaseTunerLayer, list[str]]) -> None:
    """Activate the adapter beside those that were active, freeze it, and give all else the flags that it had."""
    beside = next(iter(active.values()), [])
    for _, layer in adapter_layers(model):
        layer.set_adapter([*active.get(layer, beside), name])
        for module in layer.modules():
            if module not in before.training:
                module.training = layer.get_base_layer().training
                module.requires_grad_(False)
    if isinstance(model, PeftModel):
        model.base_model.active_adapter = [*model.base_model.active_adapters, name]
    before.restore(AuxiliaryTrainingWrapper)  # another adapter's trained copies of modules, which PEFT deactivated


def _check_detachable(model: nn.Module, name: str) -> None:
    configs = adapter_configs(model)
    if name not in configs:
        there = f"Attached are {', '.join(map(repr, configs))}." if configs else "No adapter is attached."
        raise ComposeError(f"The model has no adapter {name!r}.", there)
    if isinstance(model, PeftModel) and len(configs) == 1:
        raise ComposeError(
            f"{name!r} is the only adapter of the PeftModel, which cannot be without one.",
            "Call model.unload(), which gives the base model back.",
        )
    for trait in ("modules_to_save", "trainable_token_indices", "layer_replication"):
        if getattr(configs[name], trait, None):
            raise ComposeError(f"The adapter {name!r} has {trait}: it is no edit pack.", "Load the base model anew.")
    if getattr(configs[name], "bias", "none") != "none":
        raise ComposeError(f"The adapter {name!r} trains biases of the base.", "Load the base model anew.")
    check_unmerged(model)


def _remove(model: nn.Module, name: str) -> None:
    for _, layer in adapter_layers(model):
        layer.set_adapter([active for active in layer.active_adapters if active != name])
        if holds(layer, name):
            layer.delete_adapter(name)


def _unwrap(model: nn.Module) -> None:
    """Put the wrapped module back wherever no adapter is left around it."""
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            while isinstance(child, BaseTunerLayer) and not holds(child):
                child = child.base_layer
                setattr(parent, child_name, child)


def _forget(model: PreTrainedModel | PeftModel, name: str) -> None:
    """Clear what the model itself notes of the adapter."""
    configs = adapter_configs(model)
    del configs[name]
    if isinstance(model, PeftModel):
        tuner = model.base_model
        active = [other for other in tuner.active_adapters if other != name]
        tuner.active_adapter = active
        wrapped = {module for module, _ in adapter_layers(model)}
        for names in (tuner.targeted_module_names, tuner.targeted_parameter_names):
            names[:] = [changed for changed in names if changed in wrapped]
        if model.active_adapter == name:
            model.active_adapter = next(iter(active or configs))
    elif not configs:
        del model.peft_config
        vars(model).pop("_hf_peft_config_loaded", None)  # the class says False
        # load_adapter leaves its renaming of adapter keys here, by which save_pretrained would rename the base's
        patterns = [p for entry in vars(model).get("_weight_conversions") or () for p in entry.source_patterns]
        if any(pattern.endswith(r"[^\.]*)") for pattern in patterns):
            del model._weight_conversions
