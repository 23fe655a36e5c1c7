"""The layouts of an adapter on disk: low-rank deltas to a PEFT configuration and tensors, and back.

- `portable` (default): plain LoRA of one rank for all modules, smaller ones padded with zeros, fp32. Every reader of
  LoRA adapters takes it.
- `compact`: each module its own rank, through rank and alpha patterns, which only PEFT and transformers read.
- `bf16`: portable with bfloat16 factors: half the size, about 0.2 % relative error of the change.

Both the configuration and the names and shapes of the tensors follow from the manifest alone, so whatever a pack holds
beside what its manifest declares shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_edit.errors import PackError
from hf_edit.packs.manifest import Manifest
from hf_edit.solvers.low_rank import LowRankDelta


_PREFIX = "base_model.model."
_ANEW = "The pack is damaged or was not written by hf_edit: get it anew from where it was published."


def canonical(delta: LowRankDelta) -> LowRankDelta:
    """The delta as packs carry it: fp32 on the CPU, balanced, no more columns than the matrix has rows or columns."""
    limit = min(delta.shape)
    if delta.rank > limit:
        delta, _ = delta.to(torch.float64).compressed(limit)
    delta = delta.balanced().to(torch.float32, "cpu")
    return LowRankDelta(delta.B.detach().contiguous(), delta.A.detach().contiguous())


def adapter_keys(module: str) -> tuple[str, str]:
    """Names of the factors A (r, d_in) and B (d_out, r) of a module in the adapter's file."""
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def adapter_config(manifest: Manifest, base: str | None) -> dict[str, Any]:
    """adapter_config.json.

    Args:
        base: repository id or folder of the base.
    """
    rank = _uniform_rank(manifest)
    pattern = {}
    if manifest.layout == "compact":
        others = {name: m.rank for name, m in manifest.modules.items() if m.rank != rank}
        pattern = {f"^{re.escape(name)}": others[name] for name in sorted(others)}
    return {
        "alpha_pattern": pattern,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": any(module.orientation == "conv1d" for module in manifest.modules.values()),
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "peft_version": manifest.versions["peft"],
        "r": rank,
        "rank_pattern": pattern,
        "revision": manifest.base.revision,
        "target_modules": sorted(manifest.modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }


def adapter_shapes(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """The tensors of adapter_model.safetensors: name -> shape."""
    shapes = {}
    for module in manifest.modules:
        d_out, d_in = manifest.shape(module)
        rank = _stored_rank(manifest, module)
        a, b = adapter_keys(module)
        shapes.update({a: (rank, d_in), b: (d_out, rank)})
    return shapes


def adapter_tensors(manifest: Manifest, deltas: Mapping[str, LowRankDelta]) -> dict[str, Tensor]:
    """The content of adapter_model.safetensors for deltas in canonical form."""
    tensors = {}
    for module in sorted(deltas):
        delta = deltas[module].padded(_stored_rank(manifest, module)).to(_dtype(manifest))
        a, b = adapter_keys(module)
        tensors.update({a: delta.A.contiguous(), b: delta.B.contiguous()})
    return tensors


def read_deltas(manifest: Manifest, tensors: Mapping[str, Tensor]) -> dict[str, LowRankDelta]:
    """Undo `adapter_tensors`.

    Raises:
        PackError: a tensor too many, missing, of another shape or dtype, or not zero where it is padding.
    """
    shapes, dtype = adapter_shapes(manifest), _dtype(manifest)
    for problem, names in (("lacks", set(shapes) - set(tensors)), ("has the extra", set(tensors) - set(shapes))):
        if names:
            raise PackError(f"The adapter {problem} tensor {min(names)} ({len(names)} such in all).", _ANEW)
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise PackError(
                f"The tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)} instead of {dtype} of {shape}.",
                _ANEW,
            )
    return {module: _read_delta(module, declared.rank, tensors) for module, declared in manifest.modules.items()}


def _read_delta(module: str, rank: int, tensors: Mapping[str, Tensor]) -> LowRankDelta:
    a, b = adapter_keys(module)
    delta = LowRankDelta(tensors[b].float(), tensors[a].float())
    if delta.B[:, rank:].any() or delta.A[rank:].any():
        raise PackError(f"The factors of {module} are not zero beyond its declared rank {rank}.", _ANEW)
    return delta.trimmed(rank)


def _uniform_rank(manifest: Manifest) -> int:
    return max(module.rank for module in manifest.modules.values())


def _stored_rank(manifest: Manifest, module: str) -> int:
    return manifest.modules[module].rank if manifest.layout == "compact" else _uniform_rank(manifest)


def _dtype(manifest: Manifest) -> torch.dtype:
    return torch.bfloat16 if manifest.layout == "bf16" else torch.float32
