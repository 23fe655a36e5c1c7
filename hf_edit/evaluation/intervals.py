"""95 % intervals of what is computed from means over records: bootstrap, and Wilson's for shares.

- Records are what is drawn again: edits, questions, stretches of text. Several probes of one edit are averaged first.
- BCa: percentiles, moved for the bias and the skewness that the records show, and expanded for small samples, where
  plain percentiles are too narrow by as much as a normal interval is beside Student's.
- A share of few records is not drawn again but given Wilson's interval: of 20 right answers out of 20 every resample
  is 20 of 20, which says nothing of the mistakes that 20 records are too few to show. What is made of such shares gets
  its ends from theirs. Other records that are all alike say nothing of what others would be: there is no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray


Array: TypeAlias = NDArray[np.float64]
OfMeans: TypeAlias = Callable[[Array], Array]
"""What is wanted, of column means: (..., k) -> (...)."""

LEVEL = 0.95
DRAWS = 2000
_AT_ONCE = 1 << 22  # numbers drawn at a time, so that many records need no more memory
_ROUNDING = 1e-8  # of the range of all draws
_NORMAL = NormalDist()


def mean(means: Array) -> Array:
    """Of one column."""
    return means[..., 0]


def exponential(means: Array) -> Array:
    """exp of the mean of one column: perplexity, of mean negative log likelihoods."""
    return np.exp(means[..., 0])


def harmonic(means: Array) -> Array:
    """Harmonic mean of the column means; 0 where one of them is 0."""
    with np.errstate(divide="ignore"):
        return means.shape[-1] / (1 / means).sum(axis=-1)


STATISTICS: dict[str, OfMeans] = {"mean": mean, "amount": mean, "exp_mean": exponential, "harmonic_mean": harmonic}
"""Name -> what becomes of the column means of records. An amount is a mean without an upper end, as nats or counts."""


def estimate(records: Sequence[float] | Sequence[Sequence[float]], statistic: str = "mean") -> float:
    """The statistic of all records."""
    return float(STATISTICS[statistic](_table(records).mean(axis=0)))


def interval(
    records: Sequence[float] | Sequence[Sequence[float]], statistic: str = "mean", seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of a statistic; None of fewer than two records, or of records that are all alike.

    Args:
        records: a number each, or a row of numbers each.
        statistic: one of `STATISTICS`.
        seed: the same records and seed give the same interval.
    """
    table = _table(records)
    if len(table) < 2:
        return None
    shares = np.isin(table, (0.0, 1.0)).all()
    if statistic == "mean" and shares:
        return wilson(float(table.sum()), len(table))
    if (found := bca(table, STATISTICS[statistic], seed)) is not None:
        return found
    if statistic != "harmonic_mean" or not shares:
        return None
    ends = np.array([wilson(float(right), len(table)) for right in table.sum(axis=0)])  # (k, 2)
    low, high = STATISTICS[statistic](ends.T)
    return float(low), float(high)


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share, `right` of `n`."""
    z = _NORMAL.inv_cdf((1 + LEVEL) / 2)
    share = right / n
    centre = share + z * z / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    low = float((centre - half) / scale) if right > 0 else 0.0
    high = float((centre + half) / scale) if right < n else 1.0
    return low, high


def bca(table: Array, of_means: OfMeans, seed: int) -> tuple[float, float] | None:
    """The bias-corrected and accelerated bootstrap interval, expanded for small samples; None if all draws are alike.

    Args:
        table: (n, k) records, n >= 2.
    """
    n = len(table)
    found = float(of_means(table.mean(axis=0)))
    drawn = np.sort(of_means(resampled_means(table, DRAWS, seed)))
    if drawn[0] == drawn[-1]:
        return None
    # draws of the same records are equal but for rounding, whichever order they were added in: they count half
    rounding = _ROUNDING * (drawn[-1] - drawn[0])
    below = (np.mean(drawn < found - rounding) + np.mean(drawn <= found + rounding)) / 2
    bias = _NORMAL.inv_cdf(float(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn))))
    left_out = of_means((table.sum(axis=0) - table) / (n - 1))
    apart = left_out.mean() - left_out
    spread = float((apart**2).sum())
    acceleration = float((apart**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    low, high = (
        float(np.quantile(drawn, _NORMAL.cdf(_moved(bias, acceleration, side * expanded_z(n))))) for side in (-1, 1)
    )
    return low, high


def resampled_means(table: Array, draws: int, seed: int) -> Array:
    """(draws, k): column means of as many records again, drawn with replacement."""
    n = len(table)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, max(1, _AT_ONCE // n)):
        count = min(max(1, _AT_ONCE // n), draws - start)
        means.append(table[generator.integers(0, n, size=(count, n))].mean(axis=1))
    return np.concatenate(means)


def expanded_z(n: int) -> float:
    """The normal quantile at which percentiles of `n` records cover what Student's t would.

    sqrt(n / (n - 1)) makes up for the divisor n of the bootstrap's variance; Student's quantile is expanded in 1 / df
    (Cornish-Fisher), to within 0.3 % from 5 records on.
    """
    z = _NORMAL.inv_cdf((1 + LEVEL) / 2)
    df = n - 1
    t = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    return float(t * np.sqrt(n / df))


def _moved(bias: float, acceleration: float, z: float) -> float:
    """The normal quantile at which the end `z` is read off, by Efron's rule."""
    skewed = 1 - acceleration * (bias + z)
    return bias + (bias + z) / skewed if skewed > 0 else 40.0 * np.sign(z)


def _table(records: Sequence[Any]) -> Array:
    """(n, k)."""
    table = np.asarray(records, dtype=np.float64)
    return table[:, None] if table.ndim == 1 else table
