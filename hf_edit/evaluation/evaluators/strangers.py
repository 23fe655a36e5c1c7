"""Are questions of the edits' own kind, about things that are not edited, answered as before? Damage hides here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hf_edit.batching import spread
from hf_edit.edits import prompt_key
from hf_edit.evaluation.evaluators.held import Held, held_metrics
from hf_edit.evaluation.subject import Question, Subject, Task
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.invented import continued
from hf_edit.statistics.names import name_of, openings_alike


SEED_OFFSET = 10_007
"""Methods train on strangers of their own, invented from their seed; those asked here are to be others."""
NAMES = "names_asked.toml"
"""Names that no method trains with."""


class Strangers(Held):
    """Given ones; else the edits' own questions about other names, as the model without the edit goes on with them."""

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
    """At most `drift_questions` questions that begin as those of the edits, evenly spread over them, but are about
    others: another name stands in the place of an edit's own, and none is about anything that is edited."""
    task = subject.task
    config, view, prompts = task.config, subject.view, task.prompts
    some = spread(task.edits, -(-config.drift_questions // config.strangers))
    settings = replace(StatisticsConfig(), batch=config.batch)
    seed = config.seed + SEED_OFFSET

    def written(_: object) -> list[list[str]]:
        openings = openings_alike(view, prompts, some, config.strangers, seed, NAMES)
        return [continued(view, prompts, openings, settings, seed)]

    asked = tuple(prompt_key(edit.prompt) for edit in some)
    # as one item: few questions, and what is drawn depends on their batch
    (questions,) = subject.shared(("strangers", prompts.name, config.strangers, config.batch, seed), [asked], written)
    edited = {name.lower() for edit in task.edits if (name := name_of(edit)) is not None}
    return [question for question in questions if not any(name in question.lower() for name in edited)]
