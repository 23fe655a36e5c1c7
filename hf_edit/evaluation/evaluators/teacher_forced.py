"""The published scores of short facts, under their own name: tokens of the right answer guessed while it is fed in."""

from __future__ import annotations

from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.subject import Subject, Task
from hf_edit.packs.evaluation import FORCED


class TeacherForced(Evaluator):
    """These flatter: the length of the answer and all that comes before each token are given away."""

    name = "teacher_forced"
    metrics = {
        "es": About("Share of the taught answer's tokens that are the likeliest, behind the edit's question.", FORCED),
        "gs": About("The same behind all paraphrases, averaged for each edit.", FORCED),
        "ls": About(
            "Share of the locality probes' own answers' tokens that are the likeliest, averaged for each edit.", FORCED
        ),
    }
    needs = "edits"

    def applies(self, task: Task) -> bool:
        return bool(task.edits)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        return Observed(
            {name: [x for s in subject.scores if (x := getattr(s, name)) is not None] for name in self.metrics}
        )
