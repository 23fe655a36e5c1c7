"""Are the edits still answered as taught behind a sentence that has nothing to do with them?"""

from __future__ import annotations

from collections.abc import Sequence

from hf_edit.evaluation.evaluators.base import Evaluator, Observed, columns
from hf_edit.evaluation.evaluators.reliability import text_metrics, text_scores
from hf_edit.evaluation.hops import preceded
from hf_edit.evaluation.matching import first_sentence
from hf_edit.evaluation.subject import Question, Subject, Task


SENTENCES = 8


class Distraction(Evaluator):
    """The sentences are the unedited model's own: how it begins its answers to unrelated questions."""

    name = "distraction"
    metrics = text_metrics("free answers behind an unrelated sentence of the model's own")
    needs = "edits and unrelated questions"

    def applies(self, task: Task) -> bool:
        return bool(task.edits and task.material.unrelated)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        task = subject.task
        sentences: Sequence[str] = _sentences(subject) if before is None else before.kept
        if not sentences:
            return Observed({}, sentences)
        behind = [preceded(edit.prompt, sentences[i % len(sentences)]) for i, edit in enumerate(task.edits)]
        questions = [
            Question("distraction", prompt, edit.id, task.material.accepted(edit.target, edit.id), edit.target)
            for prompt, edit in zip(behind, task.edits, strict=True)
        ]
        answers = subject.answers(questions, task.max_new_tokens)
        scored = zip(answers, questions, strict=True)
        return Observed(columns(text_scores(answer, asked.accepted) for answer, asked in scored), sentences)


def _sentences(subject: Subject) -> list[str]:
    task = subject.task
    asked = [Question("unrelated", prompt) for prompt in task.material.unrelated[:SENTENCES]]
    answers = subject.answers(asked, task.config.probe_tokens, task.chat)
    return [sentence for answer in answers if (sentence := first_sentence(answer.text))]
