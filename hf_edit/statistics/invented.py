"""Text, questions and answers that the model writes itself, so that statistics need no data set.

Sampled at temperature 1 among the 50 likeliest tokens. Plain text starts from random tokens of the vocabulary;
questions are what the model writes where its chat template expects the user to speak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hf_edit.models.editable import EditableModel
from hf_edit.models.generation import generated
from hf_edit.prompting import PromptFormat


MAX_QUESTION_TOKENS = 32
MAX_ATTEMPTS = 4
OPENINGS = (
    *("What is", "Who", "How many", "Where is", "When did", "Which", "Why", "How do", "What is the name of"),
    *("Who wrote", "What are", "Is", "In which year", "What does", "Name", "How does", "Which country"),
    *("What was", "Who is", "Tell me"),
)
PROCEDURE = 1
"""Raised when anything here changes what is written, so that old statistics are not taken for new ones."""


def invent_text(
    model: EditableModel, length: int, batch: int, vocabulary: Sequence[int], seed: int
) -> Iterator[Tensor]:
    """Endless batches of plain text, each (batch, length) token ids, from random first tokens of `vocabulary`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(vocabulary)
    while True:
        first = tokens[torch.randint(len(tokens), (batch, 1), generator=generator)]
        step_seed = int(torch.randint(2**31, (1,), generator=generator))
        yield _sampled(model, first.to(model.device), None, length - 1, stop=None, seed=step_seed)


def invent_questions(model: EditableModel, prompts: PromptFormat, count: int, batch: int, seed: int) -> list[str]:
    """Up to `count` different questions, in the order they came; fewer if the model repeats itself.

    Left alone, chat models ask for long pieces of work. Every second question is therefore made to begin like a
    short one: its last token has another key, and it is short questions that most edits are about.
    """
    start = prompts.user_turn_ids()
    rows = [[*start, *prompts.text_ids(OPENINGS[i // 2 % len(OPENINGS)] if i % 2 else "")] for i in range(count)]
    questions: dict[str, None] = {}
    for attempt in range(MAX_ATTEMPTS):
        unended: list[list[int]] = []
        for index in range(0, len(rows), batch):
            part = rows[index : index + batch]
            ids, mask = model.left_padded(part)
            out = _sampled(model, ids, mask, MAX_QUESTION_TOKENS, prompts.stop_ids, seed + attempt * count + index)
            for row, continued in zip(part, out[:, ids.shape[1] :].tolist(), strict=True):
                ended = next((i for i, token in enumerate(continued) if token in prompts.stop_ids), None)
                question = prompts.decode([*row[len(start) :], *continued[:ended]]).strip() if ended else ""
                if question and question not in questions:
                    questions[question] = None
                else:
                    unended.append(row)
        rows = unended
    return list(questions)


def invent_answers(
    model: EditableModel, prompts: PromptFormat, questions: Sequence[str], tokens: int, batch: int, seed: int
) -> Iterator[tuple[list[int], int]]:
    """For each question its chat prompt followed by an answer of at most `tokens`, and where the answer starts."""
    for index in range(0, len(questions), batch):
        rows = [prompts.prompt_ids(question) for question in questions[index : index + batch]]
        ids, mask = model.left_padded(rows)
        out = _sampled(model, ids, mask, tokens, stop=prompts.stop_ids, seed=seed + index)
        for row, answer in zip(rows, out[:, ids.shape[1] :].tolist(), strict=True):
            ended = next((i for i, token in enumerate(answer) if token in prompts.stop_ids), len(answer))
            yield [*row, *answer[:ended]], len(row)


def _sampled(
    model: EditableModel, ids: Tensor, mask: Tensor | None, new: int, stop: frozenset[int] | None, seed: int
) -> Tensor:
    torch.manual_seed(seed)  # inside `borrowed`, which gives the caller's random state back
    return generated(
        model.model,
        ids,
        torch.ones_like(ids) if mask is None else mask,
        do_sample=True,
        temperature=1.0,
        top_k=50,
        max_new_tokens=new,
        eos_token_id=sorted(stop) if stop else None,
    )
