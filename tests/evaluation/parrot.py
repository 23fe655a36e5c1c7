"""A model that says what a table of next tokens tells it to, so that tests know every answer beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_edit.prompting import PromptFormat
from tests.tiny import VOCAB, tiny_model


def parrot(prompts: PromptFormat, said: Iterable[tuple[str, str]]) -> PreTrainedModel:
    """Asked these questions it gives these answers and stops; no token of theirs may have two successors."""
    follows: dict[int, int] = {}
    for question, answer in said:
        text = prompts.encode(question, answer)
        for token, after in zip(text.ids[text.answer_start - 1 :], text.answer_ids, strict=False):
            assert follows.setdefault(token, after) == after, "a token with two successors"
    table = torch.full((VOCAB, VOCAB), 0.0)
    for token, after in follows.items():
        table[token, after] = 5.0

    def say(_: nn.Module, __: Any, kwargs: dict[str, Any], output: Any) -> Any:
        kept = output.logits.shape[1]
        output.logits = table[kwargs["input_ids"][:, -kept:]]
        return output

    model = tiny_model()
    model.register_forward_hook(say, with_kwargs=True)
    return model
