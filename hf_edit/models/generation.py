"""Letting a model write, under the settings given and no others."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


def generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    """The prompts continued, (B, P + n): prompts padded on the left, continuations on the right, both with token 0.

    transformers fills whatever a call leaves open from the model's own generation settings (penalties, forbidden
    tokens, beams), so these are put aside meanwhile.

    Args:
        ids, mask: (B, P), prompts.
        settings: fields of `GenerationConfig`.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        plan = GenerationConfig(pad_token_id=0, **settings)
        return model.generate(ids, attention_mask=mask, generation_config=plan)  # type: ignore[operator]
    finally:
        model.generation_config = own
