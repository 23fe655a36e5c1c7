"""Are other wordings of the edits' questions answered as taught?"""

from __future__ import annotations

from hf_edit.evaluation.evaluators.base import Evaluator, Observed, averaged, columns
from hf_edit.evaluation.evaluators.reliability import text_metrics, text_scores
from hf_edit.evaluation.subject import Subject, Task


class Paraphrase(Evaluator):
    """All paraphrases of an edit, averaged; then all edits."""

    name = "paraphrase"
    metrics = text_metrics("free answers to all paraphrases (averaged for each edit)")
    needs = "edits with paraphrases"

    def applies(self, task: Task) -> bool:
        return any(edit.paraphrases for edit in task.edits)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        accepted = subject.task.material.accepted
        return Observed(
            columns(
                averaged(answers, lambda answer, edit=edit: text_scores(answer, accepted(edit.target, edit.id)))  # type: ignore[misc]
                for edit, answers in subject.reworded()
            )
        )
