"""Text, questions and answers that the model writes itself, so that statistics need no data set.

Sampled at temperature 1 among the 50 likeliest tokens. Plain text starts from random tokens of the vocabulary;
questions are what the model writes where its chat template expects the user to speak, or behind a question's first
words where there is no template. Whatever they came from, they are put to the model in the format of the edits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

import torch

from hf_edit.batching import batched
from hf_edit.edits import Prompt
from hf_edit.models.editable import EditableModel
from hf_edit.models.forward import room_behind
from hf_edit.models.generation import Choice, continuations, sampling
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.wordings import is_latin


TOP_K = 50
MAX_QUESTION_TOKENS = 32
MAX_ATTEMPTS = 4
OPENINGS = (
    *("What is", "Who", "How many", "Where is", "When did", "Which", "Why", "How do", "What is the name of"),
    *("Who wrote", "What are", "Is", "In which year", "What does", "Name", "How does", "Which country"),
    *("What was", "Who is", "Tell me"),
)
QUESTION_END = re.compile(r"[?？]|(?=\n)")
PROCEDURE = 4
"""Raised when what is written or collected changes, so that old statistics are not taken for new ones."""


def invent_text(
    model: EditableModel, count: int, length: int, batch: int, vocabulary: Sequence[int], seed: int
) -> Iterator[list[list[int]]]:
    """`count` rows of plain text of `length` token ids in batches, from random first tokens of `vocabulary`."""
    drawn = torch.randint(len(vocabulary), (count,), generator=torch.Generator().manual_seed(seed))
    first, choose = [[vocabulary[i]] for i in drawn.tolist()], sampled(seed)
    for part in batched(first, batch):
        written = continuations(model.model, part, (), length - 1, choose)
        yield [row + more for row, more in zip(part, written, strict=True)]


def invent_questions(model: EditableModel, prompts: PromptFormat, count: int, batch: int, seed: int) -> list[str]:
    """Up to `count` different questions, in the order they came; fewer if the model repeats itself.

    Left alone, chat models ask for long pieces of work. Every second question is therefore made to begin like a
    short one: its last token has another key, and it is short questions that most edits are about. A model without
    a chat template is never left alone.
    """
    choose, turns = sampled(seed), prompts.turns
    free = 2 if turns else 1
    openings = [OPENINGS[i // free % len(OPENINGS)] if i % free or not turns else "" for i in range(count)]
    questions: dict[str, None] = {}
    for _ in range(MAX_ATTEMPTS):
        unended: list[str] = []
        for part in batched(openings, batch):
            for opening, (question, ended) in zip(part, _asked(model, prompts, part, choose), strict=True):
                if ended and question and question not in questions:
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
    """Questions of the same kind as these, up to `count` for each: they begin alike and go on as the model likes."""
    return continued(model, prompts, first_words(questions, count, seed), config, seed)


def continued(
    model: EditableModel, prompts: PromptFormat, openings: Sequence[str], config: StatisticsConfig, seed: int
) -> list[str]:
    """Questions that begin with these words and go on as the model likes, without repetitions.

    One that is still going on after `MAX_QUESTION_TOKENS` ends there, at a word; one that has its mark is whole.
    """
    choose = sampled(seed)
    found: dict[str, None] = {}
    for part in batched(openings, config.batch):
        begun = [opening for opening in part if not QUESTION_END.search(opening)]
        written = iter(_asked(model, prompts, begun, choose) if begun else ())
        for opening in part:
            question, ended = next(written) if opening in begun else (opening, True)
            whole = ended or (" " not in question and not is_latin(question))
            found[question if whole else question.rpartition(" ")[0]] = None
    return [question for question in found if question]


def first_words(questions: Sequence[str], count: int, seed: int) -> list[str]:
    """How each question begins, `count` times: two words to three fifths of them; none of a single word.

    Where words have no spaces between them, it is characters.
    """
    generator = random.Random(seed)
    openings: list[str] = []
    for question in questions:
        words, space = question.split(), " "
        if len(words) == 1 and any(map(str.isalpha, question)) and not is_latin(question):
            words, space = list(question.strip()), ""
        for _ in range(count if len(words) > 1 else 0):
            kept = generator.randint(min(2, len(words) - 1), max(2, len(words) * 3 // 5))
            openings.append(space.join(words[:kept]))
    return openings


def _asked(
    model: EditableModel, prompts: PromptFormat, openings: Sequence[str], choose: Choice
) -> list[tuple[str, bool]]:
    """Per opening a question that begins so, and whether the model ended it.

    Without a chat template it ends with the first mark that ends a question, or with the line.
    """
    turns = prompts.turns
    asking = turns or PromptFormat("plain", prompts.tokenizer)
    start = turns.user_turn_ids() if turns else asking.prompt_ids("")
    begun = [asking.text_ids(opening) for opening in openings]
    written = continuations(
        model.model, [(*start, *ids) for ids in begun], asking.stop_ids, MAX_QUESTION_TOKENS, choose
    )
    questions: list[tuple[str, bool]] = []
    for ids, more in zip(begun, written, strict=True):
        text, ended = asking.decode([*ids, *more]).strip(), 0 < len(more) < MAX_QUESTION_TOKENS
        if turns is None and (mark := QUESTION_END.search(text)):
            text, ended = text[: mark.end()].strip(), True
        questions.append((text, ended))
    return questions


def invent_answers(
    model: EditableModel, prompts: PromptFormat, questions: Sequence[Prompt], tokens: int, batch: int, choose: Choice
) -> Iterator[Encoded]:
    """For each question its prompt followed by an answer of at most `tokens`, without the end of its turn.

    One that fills the model's context gets none and is left out.
    """
    context = model.max_length
    for part in batched(questions, batch):
        rows = [ids for ids in map(prompts.prompt_ids, part) if context is None or len(ids) < context]
        if not rows:
            continue
        written = continuations(model.model, rows, prompts.stop_ids, room_behind(rows, tokens, context), choose)
        yield from (Encoded((*row, *answer), len(row)) for row, answer in zip(rows, written, strict=True))


def sampled(seed: int) -> Choice:
    """How all of this is drawn."""
    return sampling(torch.Generator().manual_seed(seed), TOP_K)
