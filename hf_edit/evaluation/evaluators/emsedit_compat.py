"""Short-fact figures the way EMSEdit's family computes them, to stand beside its tables and for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TypeAlias

from torch import Tensor

from hf_edit.edits import Edit, Prompt
from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.following import answer_logits
from hf_edit.evaluation.subject import Subject, Task
from hf_edit.packs.evaluation import FORCED
from hf_edit.prompting import Encoded


_Row: TypeAlias = tuple[Edit, Prompt, str, str | None]
"""An edit, a question of it, the answer, and the other one where they are compared."""

COUNTERFACT = "counterfact"
PADDING = 0
"""The token with which a shorter old answer is filled up, and then compared."""


class EMSEditCompat(Evaluator):
    """Shares of tokens under teacher forcing.

    Of CounterFact, a token counts if its logit exceeds that of the old answer's token at the same place, though what
    stands before it is the new answer. A shorter old answer is padded with token 0, and both are cut to the longest
    answer of the shorter kind: two-token answers are compared at prefixes that do not belong to them. Of all other
    data it is the share of likeliest tokens, and of several paraphrases and probes the first counts.

    Unlike the published code, an edit of RippleEdits without an alias or a probe is left out, where that code asks the
    edit's own question once more.
    """

    name = "emsedit_compat"
    metrics = {
        "es": About("As published: tokens of the new answer that win, behind the edit's question.", FORCED),
        "gs": About("As published: the same behind the first paraphrase; of CounterFact, behind all.", FORCED),
        "ls": About(
            "As published: tokens of the first locality probe's own answer that win; of CounterFact, of all probes' "
            "own answers over the new one.",
            FORCED,
        ),
    }
    needs = "edits"
    by_default = False

    def applies(self, task: Task) -> bool:
        return bool(task.edits)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        edits, material = subject.task.edits, subject.task.material
        compared = material.layout == COUNTERFACT and all(edit.id in material.old_answers for edit in edits)
        most = None if compared else 1
        asked: dict[str, list[_Row]] = {"es": [], "gs": [], "ls": []}
        for edit in edits:
            old = material.old_answers.get(edit.id) if compared else None
            asked["es"].append((edit, edit.prompt, edit.target, old))
            asked["gs"] += [(edit, prompt, edit.target, old) for prompt in edit.paraphrases[:most]]
            asked["ls"] += [
                (edit, probe.prompt, probe.answer, edit.target if compared else None)
                for probe in edit.locality[:most]
                if probe.answer is not None
            ]
        return Observed({name: _wins(subject, some) for name, some in asked.items() if some})


def _wins(subject: Subject, asked: Sequence[_Row]) -> list[float]:
    """Per edit, averaged over its questions: the share of tokens that win."""
    prompts = subject.task.prompts
    pairs = [
        (
            prompts.encode(question, answer),
            None if other is None else prompts.encode(question, other).answer_ids[:-1],
        )
        for edit, prompt, answer, other in asked
        for question in [subject.put(prompt, edit.id)]
    ]
    widest = max(len(ids or ()) for _, ids in pairs)

    def ask(some: Sequence[tuple[Encoded, tuple[int, ...] | None]]) -> list[float]:
        found = {
            i: _share(logits[:-1], ids[:-1], some[i][1], widest)
            for i, logits, ids in answer_logits(subject.model, [text for text, _ in some])
        }
        return [found[i] for i in range(len(some))]

    found: dict[str, list[float]] = {}
    for (edit, *_), share in zip(asked, subject.shared(("wins", widest), pairs, ask), strict=True):
        found.setdefault(edit.id, []).append(share)
    return [fmean(some) for some in found.values()]


def _share(logits: Tensor, ids: Tensor, other: Sequence[int] | None, widest: int) -> float:
    if other is None:
        return float((logits.argmax(-1) == ids).float().mean())
    kept = ids[:widest].tolist()
    against = [*other, *[PADDING] * (widest - len(other))]
    return fmean(float(row[new] > row[old]) for row, new, old in zip(logits, kept, against, strict=False))
