"""What editing is to be compared with: the model as it is, and facts that it reads instead of learning them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hf_edit.bench.questions import Questions
from hf_edit.bench.retrieval import BM25
from hf_edit.edits import Edit, Prompt, prompt_key, question_of
from hf_edit.evaluation.hops import preceded
from hf_edit.evaluation.subject import Context


def in_context(questions: Questions) -> Context:
    """Each question of an edit with that edit's fact in front; every other question with the fact nearest to it."""
    own = {
        prompt_key(prompt): questions.facts[edit.id]
        for edit in questions.edits
        for prompt in (
            *_asked(edit),
            *(hop.prompt for hop in questions.material.hops.get(edit.id, ())),
        )
    }
    index = BM25(list(questions.facts.values()))
    return lambda prompt: preceded(prompt, own.get(prompt_key(prompt)) or index.best(question_of(prompt)))


def retrieval(questions: Questions) -> Context:
    """Each question with one fact of all in front: the one that BM25 finds nearest."""
    index = BM25(list(questions.facts.values()))
    return lambda prompt: preceded(prompt, index.best(question_of(prompt)))


BASELINES: Mapping[str, Callable[[Questions], Context] | None] = {
    "none": None,
    "in-context": in_context,
    "retrieval": retrieval,
}
"""Name -> what is put in front of questions; nothing for the model as it is."""


def _asked(edit: Edit) -> tuple[Prompt, ...]:
    """All questions that an edit carries."""
    return (edit.prompt, *edit.paraphrases, *(probe.prompt for probe in (*edit.locality, *edit.portability)))
