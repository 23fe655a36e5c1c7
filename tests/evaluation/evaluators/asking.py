"""Evaluators on models whose every answer is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hf_edit.edits import Edit
from hf_edit.evaluation.config import EvaluateConfig, Material
from hf_edit.evaluation.evaluators.base import Evaluator, Observed
from hf_edit.evaluation.subject import Context, Subject, Task
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from tests.evaluation.parrot import parrot
from tests.tiny import tiny_tokenizer


PLAIN = PromptFormat.of("plain", tiny_tokenizer())


def task(edits: Sequence[Edit], material: Material | None = None, **settings: Any) -> Task:
    """In the format plain, with short limits."""
    config = EvaluateConfig(**{"max_new_tokens": 12, "probe_tokens": 8, **settings})
    return Task.of(edits, material or Material(unrelated=()), config, PLAIN)


def saying(asked: Task, said: Iterable[tuple[str, str]], context: Context | None = None) -> Subject:
    """A model that gives these answers and stops."""
    return Subject(EditableModel.of(parrot(asked.prompts, said)), asked, context)


def observed(evaluator: Evaluator, subject: Subject, before: Observed | None = None) -> Observed:
    """What the evaluator makes of it."""
    evaluator.check(subject.task)
    with borrowed(subject.model):
        return evaluator.observe(subject, before)


def scores(evaluator: Evaluator, subject: Subject, before: Observed | None = None) -> dict[str, list[float]]:
    """Its scores alone; each must be described."""
    found = observed(evaluator, subject, before).scores
    assert set(found) <= set(evaluator.metrics)
    return {name: list(some) for name, some in found.items()}  # type: ignore[arg-type]
