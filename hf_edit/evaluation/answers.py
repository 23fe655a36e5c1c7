"""What a model answers: greedy, to its own natural stop."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from hf_edit.batching import batched
from hf_edit.edits import Prompt
from hf_edit.models.borrow import borrowed
from hf_edit.models.generation import continuations
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
    with borrowed(model):
        for part in batched(questions, batch):
            rows = [prompts.prompt_ids(question) for question in part]
            written = continuations(model, rows, prompts.stop_ids, max_new_tokens)
            answers += [prompts.decode(ids) for ids in written]
    return answers
