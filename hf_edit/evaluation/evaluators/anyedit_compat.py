"""Long-form figures the way AnyEdit's and UnKE's tables have them, to stand beside those and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import fmean

from hf_edit.evaluation.compat import character_bleu, rouge_l_recall, rouge_n_recall
from hf_edit.evaluation.encoders import SentenceCosine
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed, columns
from hf_edit.evaluation.subject import Question, Subject, Task


Score = Callable[[str, str], float]

SCORES: dict[str, tuple[Score, str]] = {
    "bleu": (character_bleu, "unsmoothed BLEU over characters"),
    "rouge_1": (lambda answer, target: rouge_n_recall(answer, target, 1), "ROUGE-1 recall of n-grams as sets"),
    "rouge_2": (lambda answer, target: rouge_n_recall(answer, target, 2), "ROUGE-2 recall of n-grams as sets"),
    "rouge_l": (rouge_l_recall, "ROUGE-L recall as a union of words"),
}
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
        own = columns({n: score(a.text, edit.target) for n, score in scores.items()} for edit, a in subject.own())
        reworded = columns(
            {f"{name}_paraphrase": score(answers[0].text, edit.target) for name, score in scores.items()}
            for edit, answers in subject.reworded()
        )
        return Observed({**own, **reworded, "rouge_l_sub": _sub_questions(subject)})


def _sub_questions(subject: Subject) -> list[float]:
    task, found = subject.task, []
    for edit in task.edits:
        asked = [Question("portability", probe.prompt, edit.id, (str(probe.answer),)) for probe in edit.portability]
        if asked:
            said = subject.answers(asked, task.max_new_tokens)
            found.append(fmean(rouge_l_recall(a.text, q.accepted[0]) for a, q in zip(said, asked, strict=True)))
    return found


@cache
def _cosine(name: str) -> SentenceCosine:
    return SentenceCosine.load(name)
