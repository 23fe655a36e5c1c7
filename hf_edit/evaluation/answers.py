"""What a model answers: greedy, to its own natural stop."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from hf_edit.batching import batched
from hf_edit.edits import Edit, Prompt
from hf_edit.models.borrow import borrowed
from hf_edit.models.generation import continuations
from hf_edit.prompting import PromptFormat


SPARE_TOKENS = 32
"""How much longer than the longest target an answer may grow before it is cut off."""


def edit_answers(model: PreTrainedModel, prompts: PromptFormat, edits: Sequence[Edit]) -> list[str]:
    """What the model says to the prompts of edits."""
    longest = max(len(prompts.encode(edit.prompt, edit.target).answer_ids) for edit in edits)
    return greedy_answers(model, prompts, [edit.prompt for edit in edits], longest + SPARE_TOKENS)


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
