"""Borrowing a caller's model: whatever happens inside, it comes back as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from hf_edit.errors import UnsupportedModelError


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, frozen parameters, gradients, no autocast inside; flags and random states as before afterwards.

    Holds for normal exit, exceptions and Ctrl-C alike. Hooks and replaced `forward`s are the business of those who
    set them, each in a context of its own; tensors are never written, but where a model does so itself (RWKV divides
    weights by powers of two): these are scaled back.

    Raises:
        UnsupportedModelError: the model was made in inference mode, so autograd cannot run through it.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"This {type(model).__name__} was made inside torch.inference_mode().", "Load it outside of that context."
        )
    training = [(module, module.training) for module in model.modules()]
    scaled = [
        (module, module.layers_are_rescaled) for module in model.modules() if hasattr(module, "layers_are_rescaled")
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    kinds = {"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}
    with (
        ExitStack() as plain,
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=devices),
    ):
        for kind in sorted(kinds):  # a caller's autocast would run a part of an fp32 model in 16 bits
            plain.enter_context(torch.autocast(kind, enabled=False))
        try:
            for module, _ in training:
                module.training = False
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, was in scaled:  # what its first forward in evaluation mode divided by powers of two
                module.training = not was
                module._rescale_layers()  # type: ignore[operator]
            for module, flag in training:
                module.training = flag
            for parameter in trained:
                parameter.requires_grad_(True)
            random.setstate(python_state)
            np.random.set_state(numpy_state)
