"""Are questions of the edits' own kind, about things that are not edited, answered as before? Damage hides here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hf_edit.batching import spread
from hf_edit.edits import prompt_key, question_of
from hf_edit.evaluation.evaluators.held import Held, held_metrics
from hf_edit.evaluation.subject import Question, Subject, Task
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.invented import invent_alike


SEED_OFFSET = 10_007
"""Methods train on strangers of their own, invented from their seed; those asked here are to be others."""


class Strangers(Held):
    """Given ones; else the model without the edit writes some itself, from the first words of the edits' questions."""

    name = "strangers"
    metrics = held_metrics("questions of the edits' kind about other things")
    needs = "edits, or strangers"

    def applies(self, task: Task) -> bool:
        return bool(task.edits or task.material.strangers)

    def questions(self, subject: Subject) -> Sequence[Question]:
        task = subject.task
        given = task.material.strangers or invented(subject)
        taught = {prompt_key(prompt) for edit in task.edits for prompt in (edit.prompt, *edit.paraphrases)}
        return [Question("stranger", prompt) for prompt in given if prompt_key(prompt) not in taught]


def invented(subject: Subject) -> list[str]:
    """At most `drift_questions` questions that begin as those of the edits, evenly spread over them."""
    task = subject.task
    config = task.config
    asked = [question_of(edit.prompt) for edit in task.edits]
    some = spread(asked, -(-config.drift_questions // config.strangers))
    batched = replace(StatisticsConfig(), batch=config.batch)
    seed = config.seed + SEED_OFFSET
    return subject.shared(  # as one item: few questions, and what is drawn depends on their batch
        ("strangers", task.prompts.name, config.strangers, config.batch, seed),
        [tuple(some)],
        lambda _: invent_alike(subject.view, task.prompts, some, config.strangers, batched, seed),
    )
