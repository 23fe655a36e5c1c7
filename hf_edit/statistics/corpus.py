"""The tokens that statistics are taken over: plain text, and questions in the edits' format with their answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from hf_edit.errors import HfEditWarning, StatisticsError
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.processes import Processes
from hf_edit.progress import Progress
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.invented import invent_answers, invent_questions, invent_text, sampled
from hf_edit.statistics.unfinished import Unfinished
from hf_edit.validation import shown


CORPUS = "corpus.safetensors"
WRITTEN = ("text", "questions")
"""What is kept of a corpus while it is written."""
CHARACTERS, BORDER = 8, 64
"""Of a text, looked at first for each token that is wanted; and tokens more than that, which a cut may change."""
TOKENS_PER_INPUT = 5
"""Plain text where the settings name no number, in tokens per input of the widest map that edits change."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """What second moments are taken over; the same for every layer.

    Args:
        text: (N, length) int64, rows of token ids, each run on its own.
        conversations: questions with the base's own answers, not necessarily to their end.
        source: where the text came from, as the settings say it.
    """

    text: Tensor
    conversations: tuple[Encoded, ...]
    source: str

    def tensors(self) -> dict[str, Tensor]:
        """The text and the conversations, as `from_tensors` takes them back."""
        talks = self.conversations
        rows = {
            "ids": [token for talk in talks for token in talk.ids],
            "lengths": [len(talk) for talk in talks],
            "answer_starts": [talk.answer_start for talk in talks],
        }
        return {"text": self.text} | {name: torch.tensor(row, dtype=torch.int64) for name, row in rows.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], source: str) -> Corpus:
        """The corpus that `tensors` came from.

        Raises:
            KeyError: a tensor is missing.
        """
        ids, lengths, starts = (tensors[name].tolist() for name in ("ids", "lengths", "answer_starts"))
        talks = tuple(
            Encoded(tuple(ids[end - length : end]), start)
            for end, length, start in zip(accumulate(lengths), lengths, starts, strict=True)
        )
        return cls(tensors["text"], talks, source)


def write_corpus(
    model: EditableModel,
    prompts: PromptFormat,
    config: StatisticsConfig,
    seed: int,
    progress: Progress,
    unfinished: Unfinished | None = None,
) -> Corpus:
    """The corpus under these settings; the model is left as it was.

    Several processes share what the model writes; what one of them reads or keeps is the first one's business.

    Args:
        seed: of what the model writes itself.
        unfinished: keeps the text and the questions (`WRITTEN`), and has those of a run that was killed.

    Warns:
        HfEditWarning: the model invented no question.

    Raises:
        StatisticsError: the text cannot be read, or is shorter than one row.
    """
    rows = -(-tokens_of(model, config) // config.length)
    processes, kept = Processes.joined(model.device), unfinished or Unfinished()

    def remembered(name: str, compute: Callable[[], Tensor]) -> Tensor:
        there = processes.once(lambda: kept.load(name))
        if there is not None and name in there:
            return there[name]
        tensor = compute()
        processes.once(lambda: kept.keep(name, lambda: {name: tensor}))
        return tensor

    def own_text() -> Tensor:
        vocabulary = prompts.plain_tokens()
        return torch.tensor(
            invent_text(model, rows, config.length, config.batch, vocabulary, seed, processes, progress)
        )

    def questions() -> Tensor:
        found = invent_questions(model, prompts, config.conversations, config.batch, seed, processes, progress)
        return torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8)

    with borrowed(model.model):
        if config.text == "self":
            text = remembered("text", own_text)
        else:
            text = processes.once(lambda: _given_text(prompts, config, rows))
        asked = json.loads(bytes(remembered("questions", questions).tolist())) if config.conversations else []
        if config.conversations and not asked:
            warnings.warn(
                "The model invented no question, so the statistics are of plain text alone and an edit "
                "may spill over to other questions.",
                HfEditWarning,
                stacklevel=2,
            )
        choose = partial(sampled, seed, "answers")
        talks = invent_answers(model, prompts, asked, config.answer_tokens, config.batch, choose, processes, progress)
    return Corpus(text, tuple(talks), config.text)


def tokens_of(model: EditableModel, config: StatisticsConfig) -> int:
    """Tokens of plain text that statistics are over; where the settings leave it open, as the edited maps need."""
    return config.tokens or TOKENS_PER_INPUT * max(linear.d_in for linear in model.linears)


def _given_text(prompts: PromptFormat, config: StatisticsConfig, rows: int) -> Tensor:
    """At most `rows` rows from the beginning of a file or data set."""
    text = _dataset(config.text) if config.text.startswith("dataset:") else _file(config.text)
    ids = _first_ids(prompts, text, rows * config.length)
    rows = min(rows, len(ids) // config.length)
    if rows == 0:
        raise StatisticsError(
            f"{config.text} holds {len(ids)} tokens, fewer than one sequence of {config.length}.",
            "Give a longer text, or lower statistics.length.",
        )
    return torch.tensor(ids[: rows * config.length]).reshape(rows, config.length)


def _first_ids(prompts: PromptFormat, text: str, count: int) -> tuple[int, ...]:
    """The first `count` ids of a text, or all there are; little more of it is tokenised than that takes."""
    size = CHARACTERS * count
    while size < len(text):
        ids = prompts.text_ids(text[:size])
        if len(ids) >= count + BORDER:
            return ids[:count]
        size *= 2
    return prompts.text_ids(text)[:count]


def _file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path at all
        raise StatisticsError(
            f"{shown(path)} cannot be read as UTF-8 text: {getattr(error, 'strerror', None) or error}.",
            "Set statistics.text to 'self', a text file, or 'dataset:ID:CONFIG:SPLIT:COLUMN'.",
        ) from error


def _dataset(spec: str) -> str:
    """The joined column of a dataset of the Hub."""
    parts = spec.split(":")
    if len(parts) != 5:
        raise StatisticsError(f"{spec!r} has {len(parts)} parts, not 5.", "Write 'dataset:ID:CONFIG:SPLIT:COLUMN'.")
    _, name, configuration, split, column = parts
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise StatisticsError(
            f"{spec!r} needs the package datasets, which is not installed.", "pip install 'hf-edit[datasets]'"
        ) from error
    try:
        rows = load_dataset(name, configuration or None, split=split)
        return "\n".join(rows[column])
    except (OSError, ValueError, KeyError, TypeError) as error:  # TypeError: a column that holds no text
        raise StatisticsError(f"{spec!r} cannot be read: {error}.", "Check its four parts.") from error
