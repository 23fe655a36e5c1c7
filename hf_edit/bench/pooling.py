"""Many packs of one data set as one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from hashlib import sha256
from statistics import fmean

from hf_edit.edits import EditSet
from hf_edit.evaluation.evaluators import EVALUATORS
from hf_edit.evaluation.figures import figure
from hf_edit.evaluation.figures import pooled as pooled_metric
from hf_edit.packs.evaluation import Evaluation, Figure, Metric


SHARED = ("unrelated", "perplexity")
"""Evaluators that ask every pack the same: of their figures the packs are the records, not the questions. Strangers
that are given are asked alike too; those that the base invents are each pack's own."""
HARMONIC = {"success.score": ("success.efficacy", "success.paraphrase", "success.neighbourhood")}
"""Metrics that are made of others, record by record."""


def pooled(evaluations: Sequence[Evaluation], edits: EditSet, seed: int) -> Evaluation:
    """All records together; what cannot be pooled, such as scores that another library made, is left out, and so is
    what nothing is found of.

    Args:
        evaluations: with the same evaluators, each of some of the edits.
        edits: all of them.
    """
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    shared = (*SHARED, "strangers") if first.protocol.get("strangers") == "given" else SHARED
    together = (_together(name, evaluations, seed, shared) for name in _names(evaluations))
    metrics = [one for one in together if one is not None and (one.before or one.after)]
    seconds = {key: round(sum(one.seconds[key] for one in evaluations), 2) for key in first.seconds}
    return Evaluation(
        pack=None,
        metrics=tuple(metrics),
        generations=tuple(generation for one in evaluations for generation in one.generations),
        protocol={
            **first.protocol,
            "packs": len(evaluations),
            "edits": {"count": len(edits), "sha256": sha256(edits.dumps().encode()).hexdigest()},
        },
        environment=first.environment,
        seconds=seconds,
    )


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Of all metrics, in the order in which evaluators run: not every pack has something to ask for each."""
    order = {evaluator: place for place, evaluator in enumerate(EVALUATORS)}
    found = dict.fromkeys(metric.name for one in evaluations for metric in one.metrics)
    return sorted(found, key=lambda name: order.get(_of(name), len(order)))


def _of(name: str) -> str:
    """The evaluator of a metric."""
    return name.split(".")[0]


def _together(name: str, evaluations: Sequence[Evaluation], seed: int, shared: Collection[str]) -> Metric | None:
    parts = [metric for one in evaluations for metric in one.metrics if metric.name == name]
    if name in HARMONIC:
        return _harmonic(name, evaluations, seed)
    if any(not look.values for metric in parts for look in (metric.before, metric.after) if look is not None):
        return None
    if _of(name) in shared:
        looks = ([metric.before for metric in parts], [metric.after for metric in parts])
        before, after = (_of_packs(some, parts[0].statistic, seed) for some in looks)
        return replace(parts[0], before=before, after=after)
    return pooled_metric(parts, seed)


def _of_packs(figures: Sequence[Figure | None], statistic: str, seed: int) -> Figure | None:
    """With the packs as records. Before them all were asked alike, of which there is no interval."""
    return figure([fmean(one.values) for one in figures if one is not None], statistic, seed)


def _harmonic(name: str, evaluations: Sequence[Evaluation], seed: int) -> Metric:
    found = next(metric for one in evaluations for metric in one.metrics if metric.name == name)

    def of(look: Callable[[Metric], Figure | None]) -> Figure | None:
        rows: list[tuple[float, ...]] = []
        for one in evaluations:
            metrics = {metric.name: look(metric) for metric in one.metrics if metric.name in HARMONIC[name]}
            columns = [known.values for part in HARMONIC[name] if (known := metrics.get(part)) is not None]
            if len(columns) < len(HARMONIC[name]):
                continue  # no edit of this pack has all parts
            if len({len(column) for column in columns}) > 1:
                return None  # which of its edits have all is not known any more
            rows.extend(zip(*columns, strict=True))
        return figure(rows, found.statistic, seed)

    return replace(found, before=of(lambda metric: metric.before), after=of(lambda metric: metric.after))
