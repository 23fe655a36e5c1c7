"""Everything of a model, and of the random generators, that a computation could leave a trace in."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Comparable with `==`: modules, flags, hooks, replaced forwards, tensors bit for bit, settings, random states."""
    parts: dict[str, Any] = {"random": random_states()}
    for name, module in model.named_modules():
        parts[f"module {name}"] = (id(module), type(module), module.training, sorted(vars(module)))
        parts[f"forward of {name}"] = vars(module).get("forward")
        hooks = {key: value for key, value in vars(module).items() if "hooks" in key and hasattr(value, "items")}
        parts[f"hooks of {name}"] = {key: dict(value) for key, value in hooks.items()}
        for kind in ("config", "generation_config"):
            settings = vars(module).get(kind)
            if hasattr(settings, "to_dict"):
                parts[f"{kind} of {name}"] = (id(settings), settings.to_dict())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        parts[name] = (id(tensor), tensor.requires_grad, tensor.grad is None, tensor_bytes(tensor))
    return parts


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two snapshots."""
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def random_states() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def tensor_bytes(tensor: Tensor) -> bytes:
    """dtype, shape and content."""
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + content
