"""Is the new answer likelier than the old one? CounterFact's scores, by the log probability of each whole answer."""

from __future__ import annotations

from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.subject import Subject, Task
from hf_edit.packs.evaluation import FORCED


class Success(Evaluator):
    """Each answer is scored as a whole under its own teacher forcing."""

    name = "success"
    metrics = {
        "efficacy": About(
            "Share of edits whose new answer is likelier than the old one behind the edit's question.", FORCED
        ),
        "paraphrase": About("The same behind all paraphrases, averaged for each edit.", FORCED),
        "neighbourhood": About(
            "Share of locality probes (averaged for each edit) whose own answer is likelier than the edit's new one.",
            FORCED,
        ),
        "score": About(
            "Harmonic mean of efficacy, paraphrase and neighbourhood over the edits that have all three.",
            FORCED,
            statistic="harmonic_mean",
        ),
    }
    needs = "the old answer of every edit (old_answers)"

    def applies(self, task: Task) -> bool:
        return bool(task.edits) and all(edit.id in task.material.old_answers for edit in task.edits)

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        rows = [(s.new_likelier, s.new_likelier_paraphrase, s.neighbour_kept) for s in subject.scores]
        efficacy, paraphrase, neighbourhood = (
            [x for x in column if x is not None] for column in zip(*rows, strict=True)
        )
        whole = [[x for x in row if x is not None] for row in rows if None not in row]
        return Observed(
            {"efficacy": efficacy, "paraphrase": paraphrase, "neighbourhood": neighbourhood, "score": whole}
        )
