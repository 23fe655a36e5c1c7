from __future__ import annotations

from dataclasses import replace

import pytest

from hf_edit.errors import ConfigError
from hf_edit.evaluation.figures import figure, pooled
from hf_edit.evaluation.intervals import interval
from hf_edit.packs.evaluation import FREE, Metric


def metric(before: list[float], after: list[float]) -> Metric:
    return Metric("a.b", FREE, "x", True, "mean", figure(before), figure(after))


def test_a_figure_keeps_its_records() -> None:
    records = [0.1, 0.4, 0.3333333333]
    found = figure(records, seed=5)
    assert found is not None and (found.n, found.values) == (3, (0.1, 0.4, 0.333333))
    assert found.value == pytest.approx(0.8333333 / 3, abs=1e-6)
    assert (found.low, found.high) == pytest.approx(interval(records, seed=5), abs=1e-6)
    assert figure([]) is None
    rows = figure([[1.0, 0.5], [0.5, 1.0]], "harmonic_mean")
    assert rows is not None and rows.values == () and rows.n == 2 and rows.value == 0.75


def test_pooled_is_the_figure_of_all_records() -> None:
    parts = [metric([0.0, 1.0], [1.0]), metric([0.0], [1.0, 0.5])]
    whole = pooled(parts, seed=2)
    assert whole.before == figure([0.0, 1.0, 0.0], seed=2)
    assert whole.after == figure([1.0, 1.0, 0.5], seed=2)
    assert pooled([replace(part, before=None) for part in parts]).before is None


def test_what_does_not_pool_is_refused() -> None:
    one = metric([0.0], [1.0])
    with pytest.raises(ConfigError, match="not the same metric"):
        pooled([one, replace(one, name="a.c")])
    rows = replace(one, statistic="harmonic_mean", after=figure([[1.0, 1.0]], "harmonic_mean"))
    with pytest.raises(ConfigError, match="cannot be pooled"):
        pooled([rows, rows])
