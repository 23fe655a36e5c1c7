"""Text, questions and answers that the model writes itself, so that statistics need no data set.

Sampled at temperature 1 among the 50 likeliest tokens. Plain text starts from random tokens of the vocabulary;
questions are what the model writes where its chat template expects the user to speak.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from hf_edit.batching import batched
from hf_edit.models.editable import EditableModel
from hf_edit.models.generation import Choice, continuations, sampling
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.config import StatisticsConfig


TOP_K = 50
MAX_QUESTION_TOKENS = 32
MAX_ATTEMPTS = 4
OPENINGS = (
    *("What is", "Who", "How many", "Where is", "When did", "Which", "Why", "How do", "What is the name of"),
    *("Who wrote", "What are", "Is", "In which year", "What does", "Name", "How does", "Which country"),
    *("What was", "Who is", "Tell me"),
)
PROCEDURE = 3
"""Raised when what is written or collected changes, so that old statistics are not taken for new ones."""


def invent_text(
    model: EditableModel, count: int, length: int, batch: int, vocabulary: Sequence[int], seed: int
) -> Iterator[list[list[int]]]:
    """`count` rows of plain text of `length` token ids in batches, from random first tokens of `vocabulary`."""
    drawn = torch.randint(len(vocabulary), (count,), generator=torch.Generator().manual_seed(seed))
    first, choose = [[vocabulary[i]] for i in drawn.tolist()], _choice(seed)
    for part in batched(first, batch):
        written = continuations(model.model, part, (), length - 1, choose)
        yield [row + more for row, more in zip(part, written, strict=True)]


def invent_questions(model: EditableModel, prompts: PromptFormat, count: int, batch: int, seed: int) -> list[str]:
    """Up to `count` different questions, in the order they came; fewer if the model repeats itself.

    Left alone, chat models ask for long pieces of work. Every second question is therefore made to begin like a
    short one: its last token has another key, and it is short questions that most edits are about.
    """
    start, choose = prompts.user_turn_ids(), _choice(seed)
    openings = [prompts.text_ids(OPENINGS[i // 2 % len(OPENINGS)] if i % 2 else "") for i in range(count)]
    questions: dict[str, None] = {}
    for _ in range(MAX_ATTEMPTS):
        unended: list[tuple[int, ...]] = []
        for part in batched(openings, batch):
            rows = [(*start, *opening) for opening in part]
            written = continuations(model.model, rows, prompts.stop_ids, MAX_QUESTION_TOKENS, choose)
            for opening, more in zip(part, written, strict=True):
                ended = 0 < len(more) < MAX_QUESTION_TOKENS
                question = prompts.decode([*opening, *more]).strip() if ended else ""
                if question and question not in questions:
                    questions[question] = None
                else:
                    unended.append(opening)
        openings = unended
    return list(questions)


def invent_alike(
    model: EditableModel,
    prompts: PromptFormat,
    questions: Sequence[str],
    count: int,
    config: StatisticsConfig,
    seed: int,
) -> list[str]:
    """Questions of the same kind as these, up to `count` for each: they begin alike and go on as the model likes.

    One that is still going on after `MAX_QUESTION_TOKENS` ends there, at a word. Where the format has no turns, the
    beginnings themselves.
    """
    generator = random.Random(seed)
    openings: list[str] = []
    for question in questions:
        words = question.split()
        for _ in range(count if len(words) > 1 else 0):
            kept = generator.randint(min(2, len(words) - 1), max(2, len(words) * 3 // 5))
            openings.append(" ".join(words[:kept]))
    if prompts.name != "chat":
        return list(dict.fromkeys(openings))
    start, choose = prompts.user_turn_ids(), _choice(seed)
    found: dict[str, None] = {}
    for part in batched([prompts.text_ids(opening) for opening in openings], config.batch):
        rows = [(*start, *opening) for opening in part]
        written = continuations(model.model, rows, prompts.stop_ids, MAX_QUESTION_TOKENS, choose)
        for opening, more in zip(part, written, strict=True):
            question = prompts.decode([*opening, *more]).strip()
            found[question.rpartition(" ")[0] if len(more) == MAX_QUESTION_TOKENS else question] = None
    return [question for question in found if question]


def invent_answers(
    model: EditableModel, prompts: PromptFormat, questions: Sequence[str], tokens: int, batch: int, seed: int
) -> Iterator[Encoded]:
    """For each question its chat prompt followed by an answer of at most `tokens`, without the end of its turn."""
    choose = _choice(seed)
    for part in batched(questions, batch):
        rows = [prompts.prompt_ids(question) for question in part]
        written = continuations(model.model, rows, prompts.stop_ids, tokens, choose)
        yield from (Encoded((*row, *answer), len(row)) for row, answer in zip(rows, written, strict=True))


def _choice(seed: int) -> Choice:
    return sampling(torch.Generator().manual_seed(seed), TOP_K)
