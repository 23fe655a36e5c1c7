"""What a model answers: greedy, to its own natural stop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_edit.edits import Prompt
from hf_edit.models.borrow import borrowed
from hf_edit.models.generation import generated
from hf_edit.prompting import PromptFormat


def greedy_answers(
    model: PreTrainedModel,
    prompts: PromptFormat,
    questions: Sequence[Prompt],
    max_new_tokens: int = 256,
    batch: int = 8,
) -> list[str]:
    """The model's greedy answers, in order, each cut at the token that ends it or at `max_new_tokens`.

    The model's own sampling settings and penalties do not apply.
    """
    answers: list[str] = []
    device = model.get_input_embeddings().weight.device
    with borrowed(model):
        for start in range(0, len(questions), batch):
            rows = [prompts.prompt_ids(question) for question in questions[start : start + batch]]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
            out = generated(
                model, ids, mask, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(prompts.stop_ids)
            )
            for row in out[:, width:].tolist():
                ended = next((i for i, token in enumerate(row) if token in prompts.stop_ids), len(row))
                answers.append(prompts.decode(row[:ended]))
    return answers
