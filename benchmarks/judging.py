"""What the base says, asked once, and the figures of updates against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from common import mean_interval, perplexity_ids, unrelated_questions
from fact_records import Fact
from teaching import Deltas, Taught, at_work

from hf_edit.edits import Prompt
from hf_edit.evaluation.drift import Reference, drift, perplexity, reference
from hf_edit.evaluation.edit_scores import EditScore, edit_scores
from hf_edit.evaluation.hops import Hop, replies
from hf_edit.evaluation.openings import openings, still_said
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import Encoded, PromptFormat


PERPLEXITY_TOKENS = 2048
CHAT_QUESTIONS, CHAT_TOKENS = 16, 32
STRANGER_TOKENS = 16
OPENING_TOKENS = 6
FIRST = 100  # edits whose retention a curve shows

Figures = dict[str, Any]
"""Name -> a number of the model, or a list with one number per record."""


@dataclass(frozen=True)
class Bench:
    """The base and what it said where no edit should be felt."""

    view: EditableModel
    prompts: PromptFormat
    chat: Reference
    strangers: Reference
    stranger_openings: list[Encoded]
    ids: Sequence[int]
    perplexity: float

    @classmethod
    def of(cls, view: EditableModel, prompts: PromptFormat, strangers: Sequence[Prompt]) -> Bench:
        """Ask the base. Unrelated questions are asked as a user would, in chat where there is a template."""
        model, tokenizer = view.model, prompts.tokenizer
        ids = perplexity_ids(prompts, PERPLEXITY_TOKENS)
        return cls(
            view,
            prompts,
            reference(model, PromptFormat.of(None, tokenizer), unrelated_questions()[:CHAT_QUESTIONS], CHAT_TOKENS),
            reference(model, prompts, strangers, STRANGER_TOKENS),
            openings(model, prompts, strangers, OPENING_TOKENS),
            ids,
            perplexity(model, ids),
        )

    def batch(self, facts: Sequence[Fact]) -> Batch:
        """Ask the base about a batch of facts."""
        unrelated = [[probe.prompt for probe in fact.edit.locality] for fact in facts]
        said = iter(openings(self.view.model, self.prompts, sum(unrelated, []), OPENING_TOKENS))
        return Batch(
            self,
            facts,
            [[next(said) for _ in probes] for probes in unrelated],
            self.scores(facts),
            {
                "hops_unedited": self.hops([hop for fact in facts for hop in fact.hops]),
                "hops_in_context": self.hops([hop.given(fact.told) for fact in facts for hop in fact.hops]),
            },
        )

    def scores(self, facts: Sequence[Fact]) -> list[EditScore]:
        """Of the model as it stands."""
        olds = [fact.old for fact in facts]
        known = None if None in olds else [str(old) for old in olds]
        return edit_scores(self.view.model, self.prompts, [fact.edit for fact in facts], known)

    def hops(self, asked: Sequence[Hop]) -> list[float]:
        """Of the model as it stands: whether each is answered right."""
        return [float(reply.right) for reply in replies(self.view.model, self.prompts, asked)]


@dataclass(frozen=True)
class Batch:
    """Facts that are taught together, and what the base said about them.

    Args:
        openings: per fact, of its unrelated questions.
        before: scores of the base.
        hops: answered by the base, and by the base with each question's own fact told in front of it.
    """

    bench: Bench
    facts: Sequence[Fact]
    openings: list[list[Encoded]]
    before: Sequence[EditScore]
    hops: Mapping[str, list[float]]

    def figures_before(self) -> Figures:
        """Of the base."""
        hops = {"hops": self.hops["hops_unedited"]} if self.hops["hops_unedited"] else {}
        return {**per_edit(self.before), **hops, "perplexity": self.bench.perplexity}

    def seen(self, count: int, deltas: Deltas) -> Seen:
        """What is scored of the first `count` facts behind every batch of a stream."""
        bench, model = self.bench, self.bench.view.model
        with at_work(bench.view, deltas):
            scores = bench.scores(self.facts[:count])
            kept = iter(still_said(model, bench.prompts, sum(self.openings[:count], [])))
            change = perplexity(model, bench.ids) / bench.perplexity - 1
        return Seen(scores, [[float(next(kept)) for _ in some] for some in self.openings[:count]], change)

    def figures(self, taught: Taught, seen: Seen) -> Figures:
        """Everything that is reported of all facts taught."""
        bench, model = self.bench, self.bench.view.model
        found = seen.figures()
        with at_work(bench.view, taught.deltas):
            elsewhere = still_said(model, bench.prompts, bench.stranger_openings)
            near, far = drift(model, bench.chat), drift(model, bench.strangers)
            hops = bench.hops([hop for fact in self.facts for hop in fact.hops])
        found["unchanged_strangers"] = [float(same) for same in elsewhere]
        found |= {"kl_chat": near.kl, "agreement_chat": near.agreement, "kl_strangers": far.kl}
        found["perplexity_change"] = seen.perplexity_change
        found |= {"hops": hops, **self.hops} if hops else {}
        found["seconds_per_edit"] = taught.seconds / len(self.facts)
        found["rank"] = max(delta.rank for delta in taught.deltas.values())
        found["delta_norm"] = sum(delta.norm() ** 2 for delta in taught.deltas.values()) ** 0.5
        return found | {"adapter_bytes": taught.adapter_bytes, "pack_bytes": taught.pack_bytes}


@dataclass(frozen=True)
class Seen:
    """Some facts, with some taught.

    Args:
        unchanged: per fact, of its unrelated questions.
    """

    scores: Sequence[EditScore]
    unchanged: list[list[float]]
    perplexity_change: float

    def figures(self, count: int | None = None) -> Figures:
        """Of the first `count` facts."""
        kept = sum(self.unchanged[:count], [])
        return per_edit(self.scores[:count]) | ({"unchanged": kept} if kept else {})

    def point(self) -> dict[str, Any]:
        """For a curve: all so far, and the first of them."""
        return {
            "edits": len(self.scores),
            "so_far": means(self.figures()),
            f"first_{FIRST}": means(self.figures(FIRST)),
            "perplexity_change": self.perplexity_change,
        }


def per_edit(scores: Sequence[EditScore]) -> Figures:
    """Name of a score -> its values over the edits that have it."""
    rows = [asdict(score) for score in scores]
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in rows[0] if name != "id"}
    return {name: values for name, values in columns.items() if values}


def pooled(some: Sequence[Figures]) -> Figures:
    """Several batches as one: records together, numbers of a model averaged."""
    return {
        name: sum((one[name] for one in some), []) if isinstance(value, list) else fmean(one[name] for one in some)
        for name, value in some[0].items()
    }


def with_intervals(figures: Figures) -> dict[str, Any]:
    """For the record: lists become their mean with a 95 % interval over records."""
    return {name: mean_interval(value) if isinstance(value, list) else value for name, value in figures.items()}


def means(figures: Figures) -> dict[str, float]:
    """For the eye."""
    return {name: fmean(value) if isinstance(value, list) else value for name, value in figures.items()}
