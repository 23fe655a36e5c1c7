"""Are the edits' own locality probes, their neighbours, answered as before?"""

from __future__ import annotations

from collections.abc import Sequence

from hf_edit.evaluation.evaluators.held import Held, held_metrics
from hf_edit.evaluation.subject import Question, Subject, Task


class Locality(Held):
    """Probes that edits carry, averaged for each edit."""

    name = "locality"
    metrics = held_metrics("the edits' locality probes")
    needs = "edits with locality probes"

    def applies(self, task: Task) -> bool:
        return any(edit.locality for edit in task.edits)

    def questions(self, subject: Subject) -> Sequence[Question]:
        accepted = subject.task.material.accepted
        return [
            Question("locality", probe.prompt, edit.id, accepted(probe.answer, edit.id) if probe.answer else ())
            for edit in subject.task.edits
            for probe in edit.locality
        ]
