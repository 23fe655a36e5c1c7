"""Calling a model's forward, whichever of the usual arguments it knows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def run(model: nn.Module, ids: Tensor, mask: Tensor | None = None, **arguments: Any) -> Any:
    """The model's own output for ids (B, T).

    Args:
        mask: (B, P + T), 0 at padding; None: there is none.
        arguments: such as use_cache (False unless given) or logits_to_keep; those that the forward does not know are
            left out.
    """
    given = {"attention_mask": torch.ones_like(ids) if mask is None else mask, "use_cache": False, **arguments}
    parameters = inspect.signature(model.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {name: value for name, value in given.items() if name in parameters}
    return model(input_ids=ids, **given)


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence the model was built for, if its config says so."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def room_behind(rows: Sequence[Sequence[int]], most: int, context: int | None) -> int:
    """How many tokens, `most` at most, a context holds behind prompts that run as one batch; 0 or less: none."""
    return most if context is None else min(most, context - max(map(len, rows)))
