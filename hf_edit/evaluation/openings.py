"""Whether unrelated questions are still answered in the same words: the base's first tokens, asked for once."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from hf_edit.edits import Prompt
from hf_edit.evaluation.following import answer_logits, likeliest
from hf_edit.models.borrow import borrowed
from hf_edit.models.generation import own_answers
from hf_edit.prompting import Encoded, PromptFormat


def openings(
    model: PreTrainedModel, prompts: PromptFormat, questions: Sequence[Prompt], tokens: int = 6, batch: int = 32
) -> list[Encoded]:
    """Per question what the model greedily says first, at most `tokens` tokens; where it stops, that is the last."""
    with borrowed(model):
        return own_answers(model, prompts, questions, tokens, batch)


def still_said(model: PreTrainedModel, prompts: PromptFormat, texts: Sequence[Encoded], batch: int = 32) -> list[bool]:
    """Per opening whether the model's own greedy answer begins, or ends, just so: one forward pass."""
    found = {
        i: bool(likeliest(logits, ids, prompts.stop_ids).all())
        for i, logits, ids in answer_logits(model, texts, batch)
    }
    return [found[i] for i in range(len(texts))]
