"""Do questions that follow from the edits get the answers that follow?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from statistics import fmean

from hf_edit.evaluation.evaluators.base import About, Evaluator, Observed
from hf_edit.evaluation.hops import Hop
from hf_edit.evaluation.matching import mentions
from hf_edit.evaluation.subject import Question, Subject, Task


class Hops(Evaluator):
    """Questions with accepted answers, by edit; the first sentence of a free answer has to mention one."""

    kind: str

    @abstractmethod
    def hops(self, task: Task) -> Mapping[str, Sequence[Hop]]:
        """Edit id -> its questions, one at least."""

    def applies(self, task: Task) -> bool:
        return bool(self.hops(task))

    def observe(self, subject: Subject, before: Observed | None) -> Observed:
        del before
        hops = self.hops(subject.task)
        questions = [Question(self.kind, hop.prompt, id, hop.accepted) for id, some in hops.items() for hop in some]
        said = iter(subject.answers(questions, subject.task.config.probe_tokens))
        right = [[float(mentions(next(said).text, hop.accepted)) for hop in some] for some in hops.values()]
        return Observed({"right": [fmean(some) for some in right], "any": [max(some) for some in right]})


class Portability(Hops):
    """The portability probes that edits carry."""

    name = "portability"
    kind = "portability"
    metrics = {
        "right": About(
            "Share of portability probes (averaged for each edit) of which the first sentence of the free answer "
            "mentions an accepted answer."
        ),
        "any": About("Share of edits with at least one such probe."),
    }
    needs = "edits with portability probes"

    def hops(self, task: Task) -> Mapping[str, Sequence[Hop]]:
        accepted = task.material.accepted
        return {
            edit.id: [Hop(probe.prompt, accepted(str(probe.answer), edit.id)) for probe in edit.portability]
            for edit in task.edits
            if edit.portability
        }


class MultiHop(Hops):
    """Questions several steps away."""

    name = "multi_hop"
    kind = "hop"
    metrics = {
        "right": About(
            "Share of multi-hop questions (averaged for each edit) of which the first sentence of the free answer "
            "mentions an accepted answer."
        ),
        "any": About("Share of edits with at least one such question, as MQuAKE counts its wordings."),
    }
    needs = "multi-hop questions (hops)"

    def hops(self, task: Task) -> Mapping[str, Sequence[Hop]]:
        return {edit.id: some for edit in task.edits if (some := task.material.hops.get(edit.id))}
