"""Sparse packs on tiny models, and looks at the weights below them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_edit.packs.pack import EditPack
from tests.packs.make import make_pack, sparse_deltas


TOLERANCE = 2e-5
COUNTS = (3, 9, 1)


def sparse_pack(model: PreTrainedModel, seed: int = 0) -> EditPack:
    return make_pack(model, deltas=sparse_deltas(model, COUNTS, seed=seed), seed=seed)


def saved(model: PreTrainedModel, path: Path, seed: int = 0) -> EditPack:
    pack = sparse_pack(model, seed)
    pack.save_pretrained(path, layout="sparse")
    return pack


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of all linears of the base, whatever is around them."""
    return {
        name.replace("base_model.model.", "").replace(".base_layer", ""): module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and "lora_" not in name
    }


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
