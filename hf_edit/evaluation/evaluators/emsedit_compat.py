"""Short-fact figures the way EMSEdit's family computes them, to stand beside its tables and for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from torch import Tensor

from hf_edit.edits import Prompt
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.following import answer_logits
from hf_edit.evaluation.subject import Subject, Task
from hf_edit.packs.evaluation import FORCED
from hf_edit.prompting import Encoded


PADDING = 0
"""The token with which a shorter old answer is filled up, and then compared."""


class EMSEditCompat(Evaluator):
    """Shares of tokens under teacher forcing.

    Where old answers are known (CounterFact), a token counts if its logit exceeds that of the old answer's token at
    the same place, though what stands before it is the new answer. A shorter old answer is padded with token 0, and
    both are cut to the longest answer of the shorter kind: two-token answers are compared at prefixes that do not
    belong to them. Elsewhere it is the share of likeliest tokens. Of several paraphrases and probes the first counts.
    """

    name = "emsedit_compat"
    metrics = {
        "es": About("As published: tokens of the new answer that win, behind the edit's question.", FORCED),
        "gs": About("As published: the same behind the first paraphrase.", FORCED),
        "ls": About(
            "As published: tokens of the first locality probe's own answer that win, over the new answer's where old "
            "answers are known.",
            FORCED,
        ),
    }
    needs = "edits"
    by_default = False

    def applies(self, task: Task) -> bool:
        return bool(task.edits)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        edits, old = subject.task.edits, subject.task.material.old_answers
        known = all(edit.id in old for edit in edits)
        asked: dict[str, list[tuple[Prompt, str, str | None]]] = {
            "es": [(subject.put(e.prompt, e.id), e.target, old.get(e.id)) for e in edits],
            "gs": [(subject.put(e.paraphrases[0], e.id), e.target, old.get(e.id)) for e in edits if e.paraphrases],
            "ls": [
                (subject.put(probe.prompt, e.id), probe.answer, e.target)
                for e in edits
                for probe in e.locality[:1]
                if probe.answer is not None
            ],
        }
        return Observed(
            {
                name: _wins(subject, [(q, new, other if known else None) for q, new, other in some])
                for name, some in asked.items()
                if some
            }
        )


def _wins(subject: Subject, asked: Sequence[tuple[Prompt, str, str | None]]) -> list[float]:
    """Per question with its answer, and with the other one where they are compared, the share of tokens that win."""
    prompts = subject.task.prompts
    pairs = [
        (
            prompts.encode(question, answer),
            None if other is None else prompts.encode(question, other).answer_ids[:-1],
        )
        for question, answer, other in asked
    ]
    widest = max(len(ids or ()) for _, ids in pairs)

    def ask(some: Sequence[tuple[Encoded, tuple[int, ...] | None]]) -> list[float]:
        found = {
            i: _share(logits[:-1], ids[:-1], some[i][1], widest)
            for i, logits, ids in answer_logits(subject.model, [text for text, _ in some])
        }
        return [found[i] for i in range(len(some))]

    return subject.shared(("wins", widest), pairs, ask)


def _share(logits: Tensor, ids: Tensor, other: Sequence[int] | None, widest: int) -> float:
    if other is None:
        return float((logits.argmax(-1) == ids).float().mean())
    kept = ids[:widest].tolist()
    against = [*other, *[PADDING] * (widest - len(other))]
    return fmean(float(row[new] > row[old]) for row, new, old in zip(logits, kept, against, strict=False))
