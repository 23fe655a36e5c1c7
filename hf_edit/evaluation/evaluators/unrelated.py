"""Are questions that have nothing to do with any edit answered as before?"""

from __future__ import annotations

from collections.abc import Sequence

from hf_edit.evaluation.evaluators.held import Held, held_metrics
from hf_edit.evaluation.subject import Question, Subject, Task
from hf_edit.prompting import PromptFormat


class Unrelated(Held):
    """Asked as a user would: in chat where there is a template, whatever the format of the edits."""

    name = "unrelated"
    metrics = held_metrics("unrelated questions")
    needs = "unrelated questions"

    def applies(self, task: Task) -> bool:
        return bool(task.material.unrelated)

    def prompts(self, task: Task) -> PromptFormat:
        return task.chat

    def questions(self, subject: Subject) -> Sequence[Question]:
        return [Question("unrelated", prompt) for prompt in subject.task.material.unrelated]
