"""What editing is to be compared with: the model as it is, and facts that it reads instead of learning them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hf_edit.bench.questions import Questions
from hf_edit.bench.retrieval import BM25
from hf_edit.edits import Prompt, question_of
from hf_edit.evaluation.hops import preceded
from hf_edit.evaluation.subject import Context


def in_context(questions: Questions) -> Context:
    """Each question of an edit with that edit's fact in front; every other question with the fact nearest to it."""
    nearest = retrieval(questions)

    def told(prompt: Prompt, edit: str | None) -> Prompt:
        return nearest(prompt, edit) if edit is None else preceded(prompt, questions.facts[edit])

    return told


def retrieval(questions: Questions) -> Context:
    """Each question with one fact of all in front: the one that BM25 finds nearest."""
    index = BM25(list(questions.facts.values()))
    return lambda prompt, _: preceded(prompt, index.best(question_of(prompt)))


BASELINES: Mapping[str, Callable[[Questions], Context] | None] = {
    "none": None,
    "in-context": in_context,
    "retrieval": retrieval,
}
"""Name -> what is put in front of questions; nothing for the model as it is."""
