"""Collecting second moments: every linear asked for in one pass over the tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hf_edit.errors import HfEditWarning, StatisticsError
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.invented import invent_answers, invent_questions, invent_text
from hf_edit.statistics.moments import Accumulator, SecondMoments
from hf_edit.validation import shown


TOKENS_PER_INPUT = 5
"""Plain text collected where the settings name no number, in tokens per input of the widest linear."""
FEWEST_TOKENS_PER_INPUT = 4
"""Below this a second moment says little about directions that text rarely takes."""


def collect(
    model: EditableModel,
    prompts: PromptFormat,
    linears: Sequence[EditableLinear],
    config: StatisticsConfig,
    seed: int,
    progress: Progress,
) -> SecondMoments:
    """Second moments of the inputs of `linears`, all in one pass; the model is left as it was.

    Args:
        seed: of what the model writes itself.

    Warns:
        HfEditWarning: fewer tokens than 4 times the width of an edited linear, or no question that the model
            invented in a chat format.

    Raises:
        StatisticsError: the text cannot be read, or is shorter than one sequence.
    """
    width = max(linear.d_in for linear in linears)
    wanted = config.tokens or TOKENS_PER_INPUT * width
    moments = Accumulator()
    batches = _text_batches(model, prompts, config, seed)
    progress.stage("statistics: text", wanted)
    with borrowed(model.model):
        for ids in batches:
            trace = model.trace(ids, inputs=linears)
            moments.add("text", {name: keys.flatten(0, 1) for name, keys in trace.inputs.items()})
            progress.step(min(ids.numel(), wanted))
            if moments.count("text") >= wanted:
                break
        if prompts.name == "chat" and config.conversations:
            _add_conversations(model, prompts, linears, config, seed, moments, progress)
    if moments.count("text") < FEWEST_TOKENS_PER_INPUT * width:
        warnings.warn(
            f"Statistics of {moments.count('text')} tokens for linears with {width} inputs: fewer than "
            f"{FEWEST_TOKENS_PER_INPUT} per input, so an edit may spill over. Give statistics.tokens at least "
            f"{FEWEST_TOKENS_PER_INPUT * width}, and a text as long as that.",
            HfEditWarning,
            stacklevel=2,
        )
    return moments.moments(source=config.text)


def _add_conversations(
    model: EditableModel,
    prompts: PromptFormat,
    linears: Sequence[EditableLinear],
    config: StatisticsConfig,
    seed: int,
    moments: Accumulator,
    progress: Progress,
) -> None:
    """Moments at the last token of invented questions, where every edit's first key sits, and over their answers."""
    progress.stage("statistics: questions", 1)
    questions = invent_questions(model, prompts, config.conversations, config.batch, seed)
    progress.step()
    if not questions:
        warnings.warn(
            "The model invented no question in its chat format, so the statistics are of plain text alone and an edit "
            "may spill over to other questions.",
            HfEditWarning,
            stacklevel=3,
        )
    progress.stage("statistics: answers", len(questions))
    for ids, start in invent_answers(model, prompts, questions, config.answer_tokens, config.batch, seed):
        inputs = model.trace(torch.tensor([ids], device=model.device), inputs=linears).inputs
        moments.add("prompt", {name: keys[0, start - 1 : start] for name, keys in inputs.items()})
        if len(ids) > start:
            moments.add("answer", {name: keys[0, start:] for name, keys in inputs.items()})
        progress.step()


def _text_batches(
    model: EditableModel, prompts: PromptFormat, config: StatisticsConfig, seed: int
) -> Iterator[Tensor]:
    """Token ids (batch, length), without end if the model writes them itself."""
    if config.text == "self":
        return invent_text(model, config.length, config.batch, prompts.plain_tokens(), seed)
    ids = prompts.text_ids(_dataset_text(config.text) if config.text.startswith("dataset:") else _file(config.text))
    rows = len(ids) // config.length
    if rows == 0:
        raise StatisticsError(
            f"{config.text} holds {len(ids)} tokens, fewer than one sequence of {config.length}.",
            "Give a longer text, or lower statistics.length.",
        )
    sequences = torch.tensor(ids[: rows * config.length], device=model.device).reshape(rows, config.length)
    return iter(sequences.split(config.batch))


def _file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path at all
        raise StatisticsError(
            f"{shown(path)} cannot be read as UTF-8 text: {getattr(error, 'strerror', None) or error}.",
            "Set statistics.text to 'self', a text file, or 'dataset:ID:CONFIG:SPLIT:COLUMN'.",
        ) from error


def _dataset_text(spec: str) -> str:
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
