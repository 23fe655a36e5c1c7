"""Are the edits' own questions answered as taught, when the model speaks freely?"""

from __future__ import annotations

from collections.abc import Sequence

from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed, columns
from hf_edit.evaluation.scores import contains, exact, normalised_exact, token_f1
from hf_edit.evaluation.subject import Answer, Subject, Task


def text_scores(answer: Answer, accepted: Sequence[str]) -> dict[str, float]:
    """A free answer against what counts as right, of which the first is the answer that was taught."""
    return {
        "exact": float(answer.stopped and exact(answer.text, accepted[0])),
        "normalised": float(answer.stopped and normalised_exact(answer.text, accepted)),
        "contains": float(contains(answer.text, accepted)),
        "f1": token_f1(answer.text, accepted),
    }


def text_metrics(whose: str) -> dict[str, About]:
    """What `text_scores` of these answers say."""
    return {
        "exact": About(f"Share of {whose} that are the taught answer word for word and stop there."),
        "normalised": About(
            f"Share of {whose} that are the taught answer or an alias, whatever the case, punctuation and articles, "
            "and stop there."
        ),
        "contains": About(f"Share of {whose} that hold the taught answer or an alias as whole words."),
        "f1": About(f"Token F1 of {whose} with the taught answer or the nearest alias."),
    }


class Reliability(Evaluator):
    """The edits' own questions."""

    name = "reliability"
    metrics = {
        **text_metrics("free answers to the edits' own questions"),
        "stops": About(
            "Share of free answers to the edits' own questions that end by themselves before the limit of tokens."
        ),
    }
    needs = "edits"

    def applies(self, task: Task) -> bool:
        return bool(task.edits)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        return Observed(
            columns(
                {
                    **text_scores(answer, subject.task.material.accepted(edit.target, edit.id)),
                    "stops": float(answer.stopped),
                }
                for edit, answer in subject.own()
            )
        )
