"""Intervals cover what they say, whatever the records look like, and are the same every time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_edit.evaluation.intervals import estimate, expanded_z, interval, resampled_means, wilson


CASES = 1000
KINDS: dict[str, tuple[Callable[[np.random.Generator], np.ndarray], float]] = {
    "normal": (lambda draw: draw.normal(1, 2, 30), 1.0),
    "shares of a few": (lambda draw: draw.beta(4, 1, 30), 0.8),
    "skewed": (lambda draw: draw.gamma(2, 1, 50), 2.0),
    "right or wrong": (lambda draw: (draw.random(40) < 0.85).astype(float), 0.85),
}
"""Kind of records -> how they are drawn, and their true mean."""


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_thousand_simulated_cases_as_many_are_covered_as_promised(kind: str) -> None:
    drawn, true = KINDS[kind]
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(CASES):
        bounds = interval(drawn(generator).tolist(), seed=seed)
        assert bounds is not None
        covered += bounds[0] <= true <= bounds[1]
    assert 0.93 <= covered / CASES <= 0.97


numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=3, max_size=40)


@settings(deadline=None, max_examples=100)
@given(numbers, st.floats(0.1, 10), st.floats(-50, 50))
@example([0.0, -93.5, 0.312, 78.0, 0.0, 1.0], 1.0, 1.0)  # of six records, 3 % of all draws are the records themselves
def test_another_scale_gives_the_same_interval_on_it(records: list[float], scale: float, shift: float) -> None:
    if set(records) <= {0.0, 1.0} or {scale * x + shift for x in records} <= {0.0, 1.0} or len(set(records)) < 2:
        return
    bounds, moved = interval(records), interval([scale * x + shift for x in records])
    assert bounds is not None and moved is not None
    assert min(records) - 1e-9 <= bounds[0] <= bounds[1] <= max(records) + 1e-9
    assert moved == pytest.approx([scale * x + shift for x in bounds], abs=1e-6 * scale * 200)


def test_the_seed_decides() -> None:
    records = list(np.random.default_rng(1).normal(size=25))
    assert interval(records, seed=3) == interval(records, seed=3) != interval(records, seed=4)


def test_one_record_and_records_alike_have_none() -> None:
    assert interval([0.5]) is None
    assert interval([0.25, 0.25, 0.25]) is None


def test_all_right_is_no_certainty() -> None:
    bounds = interval([1.0] * 20)
    assert bounds == pytest.approx((0.8389, 1.0), abs=1e-4)  # Wilson, z = 1.96
    assert wilson(0, 20)[0] == 0.0 and wilson(0, 20)[1] == pytest.approx(1 - 0.8389, abs=1e-4)


def test_statistics_of_means() -> None:
    losses = [1.0, 2.0, 3.0]
    assert estimate(losses, "exp_mean") == pytest.approx(np.exp(2.0))
    low, high = interval(losses * 10, "exp_mean") or (0, 0)
    assert np.log([low, high]) == pytest.approx(interval(losses * 10), rel=1e-2)
    rows = [[1.0, 0.5, 0.25], [1.0, 0.5, 0.75]]
    assert estimate(rows, "harmonic_mean") == pytest.approx(3 / (1 + 2 + 2))
    assert estimate([[0.0, 1.0]], "harmonic_mean") == 0.0
    low, high = wilson(5, 5)[0], wilson(0, 5)[1]
    assert interval([[1.0, 0.0]] * 5, "harmonic_mean") == pytest.approx((0.0, 2 / (1 + 1 / high)))
    assert interval([[1.0, 1.0]] * 5, "harmonic_mean") == pytest.approx((low, 1.0))


def test_small_samples_get_the_width_of_student() -> None:
    scipy_t = {5: 2.7764451, 10: 2.2621572, 30: 2.0452296, 200: 1.9719565}  # two-sided, n - 1 degrees of freedom
    for n, t in scipy_t.items():
        assert expanded_z(n) == pytest.approx(t * np.sqrt(n / (n - 1)), rel=3e-3)


def test_drawing_in_pieces_draws_all(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.arange(10.0)[:, None]
    monkeypatch.setattr("hf_edit.evaluation.intervals._AT_ONCE", 35)
    means = resampled_means(table, 101, 0)
    assert means.shape == (101, 1) and abs(means.mean() - 4.5) < 0.5


def test_amounts_are_no_shares() -> None:
    assert interval([0.0] * 10, "amount") is None  # alike: nothing says how far others would be
    assert interval([0.0] * 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
