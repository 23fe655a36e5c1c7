"""What a model answers: greedy, to its own natural stop."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from hf_edit.batching import batched
from hf_edit.edits import Edit, Prompt
from hf_edit.errors import ConfigError, InvalidEditError
from hf_edit.models.borrow import borrowed
from hf_edit.models.forward import context_length, room_behind
from hf_edit.models.generation import drafted
from hf_edit.prompting import PromptFormat


SPARE_TOKENS = 32
"""How much longer than the longest target an answer may grow before it is cut off."""


def edit_answers(
    model: PreTrainedModel, prompts: PromptFormat, edits: Sequence[Edit], drafts: Sequence[str] | None = None
) -> list[str]:
    """What the model says to the prompts of edits; `drafts` as for `greedy_answers`, the targets unless given."""
    longest = max(len(prompts.encode(edit.prompt, edit.target).answer_ids) for edit in edits)
    drafts = [edit.target for edit in edits] if drafts is None else drafts
    return greedy_answers(model, prompts, [edit.prompt for edit in edits], longest + SPARE_TOKENS, drafts=drafts)


def greedy_answers(
    model: PreTrainedModel,
    prompts: PromptFormat,
    questions: Sequence[Prompt],
    max_new_tokens: int = 256,
    batch: int = 8,
    drafts: Sequence[str] | None = None,
) -> list[str]:
    """The model's greedy answers, in order, each cut at the token that ends it or at `max_new_tokens`.

    The model's own sampling settings and penalties do not apply.

    Args:
        max_new_tokens: fewer where the model's context holds no more behind the longest question of a batch.
        drafts: what each answer may be, empty for no idea: the answers are the same without, and take longer.

    Raises:
        ConfigError: a question leaves no room for an answer in the model's context.
    """
    answers: list[str] = []
    asked = list(zip(questions, [""] * len(questions) if drafts is None else drafts, strict=True))
    with borrowed(model):
        for part in batched(asked, batch):
            rows = [prompts.prompt_ids(question) for question, _ in part]
            ahead = [_ids(prompts, question, draft) for question, draft in part]
            limit = room_for_answers(rows, max_new_tokens, context_length(model))
            written = drafted(model, rows, ahead, prompts.stop_ids, limit)
            answers += [prompts.decode(ids) for ids in written]
    return answers


def room_for_answers(rows: Sequence[Sequence[int]], most: int, context: int | None) -> int:
    """`room_behind`; ConfigError where there is none, as the longest prompt fills the model's context."""
    room = room_behind(rows, most, context)
    if room < 1:
        raise ConfigError(
            f"A question takes {max(map(len, rows))} tokens, and the model's context holds {context}.",
            "Shorten the questions, or leave out the evaluators that put text in front of them.",
        )
    return room


def _ids(prompts: PromptFormat, question: Prompt, draft: str) -> tuple[int, ...]:
    """A draft as token ids; none where it has none."""
    try:
        return prompts.encode(question, draft).answer_ids if draft else ()
    except InvalidEditError:
        return ()
