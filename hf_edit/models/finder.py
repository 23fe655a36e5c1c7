"""Finds blocks and MLP output maps by structure, for architectures that the table does not list."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.errors import UnsupportedModelError
from hf_edit.models.families import Family, families


def find_family(model: PreTrainedModel) -> Family:
    """The table's entry for the model, or one read off its structure.

    Raises:
        UnsupportedModelError: no stack of decoder blocks, or no MLP output map in them.
    """
    known = families().get(model.config.model_type)
    if known is not None and _has(model, known):
        return known
    blocks = _find_blocks(model)
    return Family("structural", blocks, _find_mlp_out(model, blocks))


def _has(model: PreTrainedModel, family: Family) -> bool:
    try:
        model.get_submodule(f"{family.blocks}.0.{family.mlp_out}")
    except AttributeError:
        return False
    return True


def _find_blocks(model: PreTrainedModel) -> str:
    """Path of the list of as many modules of one class as the config has layers; the largest if there are several."""
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    stacks = [
        (sum(p.numel() for p in module.parameters()), name)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and len({type(m) for m in module}) == 1
    ]
    if not stacks:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no list of {depth} equal decoder blocks, as config.num_hidden_layers says.",
            f"Add its paths to hf_edit/models/families.toml under [{model.config.model_type}].",
        )
    return max(stacks)[1]


def _find_mlp_out(model: PreTrainedModel, blocks: str) -> str:
    """Path inside a block of the linear that runs last and writes to the residual stream's width.

    In every decoder block the MLP closes the block or runs after the attention, so its last linear is that one.
    """
    width = model.config.get_text_config(decoder=True).hidden_size
    ran: list[str] = []
    block = model.get_submodule(f"{blocks}.0")
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in block.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and linear_shape(module)[0] == width
    ]
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            ids = torch.zeros((1, 2), dtype=torch.long, device=device)
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise UnsupportedModelError(
            f"A block of {type(model).__name__} runs no nn.Linear or Conv1D with {width} outputs, so there is nothing "
            "that hf_edit can change (experts fused into one parameter, or an unknown kind of linear).",
            f"Add its paths to hf_edit/models/families.toml under [{model.config.model_type}] if there is one.",
        )
    return ran[-1]


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear map, whichever way it stores its weight.

    Raises:
        UnsupportedModelError: it is of another kind, such as a quantiser's own.
    """
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    raise UnsupportedModelError(
        f"{type(module).__name__} is neither nn.Linear nor Conv1D, so hf_edit cannot change it.",
        "Load the model unquantised, in float32, bfloat16 or float16.",
    )
