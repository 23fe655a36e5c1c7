"""From what was scored record by record to figures with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hf_edit.errors import ConfigError
from hf_edit.evaluation.intervals import estimate, interval
from hf_edit.packs.evaluation import Figure, Metric


DIGITS = 6
"""Behind the point: what is written does not hang on the last bits of a sum."""


def figure(
    records: Sequence[float] | Sequence[Sequence[float]], statistic: str = "mean", seed: int = 0
) -> Figure | None:
    """The figure of records, with its 95 % interval; None of no records.

    Args:
        records: a number each, which the figure keeps, or a row each.
    """
    if not records:
        return None
    plain = [_rounded(one) for one in records if isinstance(one, (int, float))]
    bounds = interval(records, statistic, seed)
    low, high = (None, None) if bounds is None else map(_rounded, bounds)
    return Figure(_rounded(estimate(records, statistic)), low, high, len(records), tuple(plain))


def pooled(metrics: Sequence[Metric], seed: int = 0) -> Metric:
    """One metric of several evaluations, such as of many packs of one edit each, with all records together.

    Raises:
        ConfigError: they are not the same metric, or their figures are not made of one number for each record.
    """
    first = metrics[0]
    for metric in metrics:
        if (metric.name, metric.protocol, metric.statistic) != (first.name, first.protocol, first.statistic):
            raise ConfigError(
                f"{first.name} and {metric.name} are not the same metric.", "Pool metrics of one name and protocol."
            )

    def together(figures: Sequence[Figure | None]) -> Figure | None:
        there = [one for one in figures if one is not None]
        if any(not one.values for one in there):
            raise ConfigError(
                f"{first.name} is not made of one number for each record, so it cannot be pooled.",
                "Pool what it is made of.",
            )
        return figure([value for one in there for value in one.values], first.statistic, seed)

    return replace(first, before=together([m.before for m in metrics]), after=together([m.after for m in metrics]))


def _rounded(value: float) -> float:
    """Without a sign where nothing is left of the number."""
    return round(float(value), DIGITS) + 0.0
