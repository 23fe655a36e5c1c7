"""Text, questions and answers that the model writes itself, so that statistics need no data set.

Sampled at temperature 1 among the 50 likeliest tokens. Plain text starts from random tokens of the vocabulary;
questions are what the model writes where its chat template expects the user to speak, or behind a question's first
words where there is no template. Whatever they came from, they are put to the model in the format of the edits.

What is written together is drawn by a generator of its own, so that several processes can share it out and come to the
same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from hf_edit.batching import batched
from hf_edit.edits import Prompt
from hf_edit.models.editable import EditableModel
from hf_edit.models.forward import room_behind
from hf_edit.models.generation import Choice, continuations, sampling
from hf_edit.processes import Processes
from hf_edit.progress import Progress, Silent
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.wordings import is_latin


T = TypeVar("T")
R = TypeVar("R")
TOP_K = 50
MAX_QUESTION_TOKENS = 32
MAX_ATTEMPTS = 4
OPENINGS = (
    *("What is", "Who", "How many", "Where is", "When did", "Which", "Why", "How do", "What is the name of"),
    *("Who wrote", "What are", "Is", "In which year", "What does", "Name", "How does", "Which country"),
    *("What was", "Who is", "Tell me"),
)
QUESTION_END = re.compile(r"[?？]|(?=\n)")
PROCEDURE = 5
"""Raised when what is written or collected changes, so that old statistics are not taken for new ones."""


def invent_text(
    model: EditableModel,
    count: int,
    length: int,
    batch: int,
    vocabulary: Sequence[int],
    seed: int,
    processes: Processes = Processes(),
    progress: Progress = Silent(),
) -> list[list[int]]:
    """`count` rows of plain text of `length` token ids, from random first tokens of `vocabulary`."""
    drawn = torch.randint(len(vocabulary), (count,), generator=torch.Generator().manual_seed(seed))

    def written(number: int, first: Sequence[list[int]]) -> list[list[int]]:
        more = continuations(model.model, first, (), length - 1, sampled(seed, "text", number))
        return [row + ids for row, ids in zip(first, more, strict=True)]

    begun = [[vocabulary[i]] for i in drawn.tolist()]
    return _in_batches("text", begun, batch, written, processes, progress, length)


def invent_questions(
    model: EditableModel,
    prompts: PromptFormat,
    count: int,
    batch: int,
    seed: int,
    processes: Processes = Processes(),
    progress: Progress = Silent(),
) -> list[str]:
    """Up to `count` different questions, in the order they came; fewer if the model repeats itself.

    Left alone, chat models ask for long pieces of work. Every second question is therefore made to begin like a
    short one: its last token has another key, and it is short questions that most edits are about. A model without
    a chat template is never left alone.
    """
    turns = prompts.turns
    free = 2 if turns else 1
    openings = [OPENINGS[i // free % len(OPENINGS)] if i % free or not turns else "" for i in range(count)]
    questions: dict[str, None] = {}
    for attempt in range(MAX_ATTEMPTS):

        def asked(number: int, begun: Sequence[str], attempt: int = attempt) -> list[tuple[str, bool]]:
            return _asked(model, prompts, begun, sampled(seed, "questions", attempt, number))

        again = f", attempt {attempt + 1}" if attempt else ""
        every = _in_batches(f"questions{again}", openings, batch, asked, processes, progress)
        unended: list[str] = []
        for opening, (question, ended) in zip(openings, every, strict=True):
            if ended and question and question not in questions:
                questions[question] = None
            else:
                unended.append(opening)
        openings = unended
    return list(questions)


def continued(
    model: EditableModel,
    prompts: PromptFormat,
    openings: Sequence[str],
    config: StatisticsConfig,
    seed: int,
    processes: Processes = Processes(),
) -> list[str]:
    """Questions that begin with these words and go on as the model likes, without repetitions.

    One that is still going on after `MAX_QUESTION_TOKENS` ends there, at a word; one that has its mark is whole.
    """
    begun = [opening for opening in openings if not QUESTION_END.search(opening)]

    def written(number: int, part: Sequence[str]) -> list[tuple[str, bool]]:
        return _asked(model, prompts, part, sampled(seed, "continued", number))

    went_on = iter(_in_batches("questions that go on", begun, config.batch, written, processes))
    found: dict[str, None] = {}
    for opening in openings:
        question, ended = (opening, True) if QUESTION_END.search(opening) else next(went_on)
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
    """Per opening a question that begins so, and whether the model ended it; nothing of one that leaves no room.

    Without a chat template it ends with the first mark that ends a question, or with the line.
    """
    turns = prompts.turns
    asking = turns or PromptFormat("plain", prompts.tokenizer)
    start = turns.user_turn_ids() if turns else asking.prompt_ids("")
    begun = [asking.text_ids(opening) for opening in openings]
    rows = [(*start, *ids) for ids in begun]
    most, context = MAX_QUESTION_TOKENS, model.max_length
    fitting = [i for i, row in enumerate(rows) if room_behind([row], most, context) == most]
    written = continuations(model.model, [rows[i] for i in fitting], asking.stop_ids, most, choose) if fitting else []
    questions = [("", True)] * len(rows)
    for i, more in zip(fitting, written, strict=True):
        ids = begun[i]
        text, ended = asking.decode([*ids, *more]).strip(), 0 < len(more) < most
        if turns is None and (mark := QUESTION_END.search(text)):
            text, ended = text[: mark.end()].strip(), True
        questions[i] = text, ended
    return questions


def invent_answers(
    model: EditableModel,
    prompts: PromptFormat,
    questions: Sequence[Prompt],
    tokens: int,
    batch: int,
    choose: Callable[[int], Choice],
    processes: Processes = Processes(),
    progress: Progress = Silent(),
) -> list[Encoded]:
    """For each question its prompt followed by an answer of at most `tokens`, without the end of its turn.

    One that fills the model's context gets none and is left out.

    Args:
        choose: how the answers of a batch are drawn, by its number.
    """
    context = model.max_length

    def answered(number: int, some: Sequence[Prompt]) -> list[Encoded]:
        rows = [ids for ids in map(prompts.prompt_ids, some) if context is None or len(ids) < context]
        if not rows:
            return []
        most = room_behind(rows, tokens, context)
        written = continuations(model.model, rows, prompts.stop_ids, most, choose(number))
        return [Encoded((*row, *answer), len(row)) for row, answer in zip(rows, written, strict=True)]

    return _in_batches("answers", questions, batch, answered, processes, progress)


def _in_batches(
    what: str,
    items: Sequence[T],
    batch: int,
    write: Callable[[int, Sequence[T]], list[R]],
    processes: Processes = Processes(),
    progress: Progress = Silent(),
    unit: int = 1,
) -> list[R]:
    """What `write` makes of each batch of `items`, by its number, in order; the processes share the batches.

    Args:
        what: is written, for the progress; nothing is told of no items.
        unit: how far one item takes it.
    """
    if not items:
        return []
    parts = list(enumerate(batched(items, batch)))

    def written(part: tuple[int, Sequence[T]]) -> list[R]:
        found = write(*part)
        progress.step(unit * len(part[1]))
        return found

    progress.stage(f"statistics: {what}", unit * sum(len(some) for _, some in processes.mine(parts)))
    return [one for found in processes.map(written, parts) for one in found]


def sampled(seed: int, *place: str | int) -> Choice:
    """How all of this is drawn.

    Args:
        place: of what is drawn together.
    """
    return sampling(torch.Generator().manual_seed(random.Random(f"{seed} {place}").getrandbits(63)), TOP_K)
