"""Long-form figures the way AnyEdit's and UnKE's tables have them, to stand beside those and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import fmean

from hf_edit.edits import Edit
from hf_edit.evaluation.compat import character_bleu, rouge_l_recall, rouge_n_recall
from hf_edit.evaluation.encoders import SentenceCosine
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed, columns
from hf_edit.evaluation.subject import Answer, Question, Subject, Task


Score = Callable[[str, str], float]

SCORES: dict[str, tuple[Score, str]] = {
    "bleu": (character_bleu, "unsmoothed BLEU over characters"),
    "rouge_1": (lambda answer, target: rouge_n_recall(answer, target, 1), "ROUGE-1 recall of n-grams as sets"),
    "rouge_2": (lambda answer, target: rouge_n_recall(answer, target, 2), "ROUGE-2 recall of n-grams as sets"),
    "rouge_l": (rouge_l_recall, "ROUGE-L recall as a union of words"),
}
PUBLISHED_TOKENS = 512
"""Of an answer, at most: recall and lengths depend on where it is cut off."""
COSINE = "cosine of sentence embeddings (published as BERT score)"


class AnyEditCompat(Evaluator):
    """From 0 to 1 where the tables have percent. Greedy decoding stands for sampling at temperature 0.001."""

    name = "anyedit_compat"
    metrics = {
        **{
            f"{score}{suffix}": About(f"As published: {what} of free answers to {asked} with the taught ones.")
            for suffix, asked in (("", "the edits' own questions"), ("_paraphrase", "each edit's first paraphrase"))
            for score, what in (*((name, what) for name, (_, what) in SCORES.items()), ("cosine", COSINE))
        },
        "rouge_l_sub": About(
            "As published: ROUGE-L recall as a union of words of free answers to sub-questions (portability probes) "
            "with the right ones, averaged for each edit."
        ),
    }
    needs = "edits"
    by_default = False

    def applies(self, task: Task) -> bool:
        return bool(task.edits)

    def check(self, task: Task) -> None:
        super().check(task)
        if task.config.sentence_model:
            _cosine(task.config.sentence_model)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        task = subject.task
        scores = {name: score for name, (score, _) in SCORES.items()}
        if task.config.sentence_model:
            scores["cosine"] = _cosine(task.config.sentence_model).cosine

        def scored(some: tuple[Edit, Answer]) -> dict[str, float]:
            edit, answer = some
            return {name: score(answer.text, edit.target) for name, score in scores.items()}

        first = [(edit, task.reworded(edit)[0]) for edit in task.edits if edit.paraphrases]
        again = list(zip([e for e, _ in first], subject.answers([q for _, q in first], PUBLISHED_TOKENS), strict=True))
        said = subject.answers([task.own(edit) for edit in task.edits], PUBLISHED_TOKENS)
        # shared as well, since an encoder may take longer than the model
        own = columns(subject.processes.map(scored, list(zip(task.edits, said, strict=True))))
        reworded = {
            f"{name}_paraphrase": values for name, values in columns(subject.processes.map(scored, again)).items()
        }
        return Observed({**own, **reworded, "rouge_l_sub": _sub_questions(subject)})


def _sub_questions(subject: Subject) -> list[float]:
    task = subject.task
    asked = [
        [Question("portability", probe.prompt, edit.id, (str(probe.answer),)) for probe in edit.portability]
        for edit in task.edits
        if edit.portability
    ]
    said = subject.grouped(asked, PUBLISHED_TOKENS)
    return [
        fmean(rouge_l_recall(answer.text, question.accepted[0]) for question, answer in zip(*group, strict=True))
        for group in zip(asked, said, strict=True)
    ]


@cache
def _cosine(name: str) -> SentenceCosine:
    return SentenceCosine.load(name)
