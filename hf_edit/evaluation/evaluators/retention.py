"""Are the first edits of a sequence still there after the last one?"""

from __future__ import annotations

from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.evaluators.reliability import text_scores
from hf_edit.evaluation.subject import Subject, Task


class Retention(Evaluator):
    """The first edits beside the last ones, all asked after all edits."""

    name = "retention"
    metrics = {
        f"{which}_{score}": About(
            f"Share of free answers to the {which} edits' own questions that {what}, after all edits."
        )
        for which in ("first", "last")
        for score, what in (("exact", "are the taught answer word for word"), ("contains", "hold the taught answer"))
    }
    needs = "more edits than the setting retention says"

    def applies(self, task: Task) -> bool:
        return len(task.edits) > task.config.retention

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        count, accepted = subject.task.config.retention, subject.task.material.accepted
        rows = [text_scores(answer, accepted(edit.target, edit.id)) for edit, answer in subject.own()]
        ends = {"first": rows[:count], "last": rows[max(count, len(rows) - count) :]}  # none in both
        return Observed(
            {f"{which}_{s}": [row[s] for row in some] for which, some in ends.items() for s in ("exact", "contains")}
        )
