"""Bootstrap intervals: of a mean or a ratio of sums, over pictures and seeds, and of paired differences.

Resamples are drawn once for each (number of units, number of resamples, seed), so that every metric of one benchmark is
resampled alike, and two runs on the same pictures are paired whenever their difference is what is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95  # coverage of every interval


@dataclass(frozen=True)
class Estimate:
    """A value, the ends of its 95 % percentile interval, and the number of units (pictures, questions) behind it."""

    value: float
    low: float
    high: float
    n: int


@lru_cache(maxsize=8)  # 16 kB a unit each
def resample_weights(n: int, resamples: int, seed: int) -> np.ndarray:
    """Weights of `resamples` draws of `n` units with replacement.

    Returns float64 [resamples, n]; each row sums to one. The array is cached and read-only.
    """
    random = np.random.default_rng([seed, n])
    weights = np.empty((resamples, n))
    for row in weights:  # one at a time, so that nothing but the result takes memory with their number
        row[:] = np.bincount(random.integers(0, n, size=n), minlength=n)
    weights /= n
    weights.flags.writeable = False
    return weights


def interval(
    numerator: np.ndarray, denominator: np.ndarray | None = None, *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over units, or the ratio of two sums over units, with its bootstrap interval.

    numerator: [n], or [seeds, n] for several runs on the same units. denominator: like numerator, or [n] for all seeds
    (a number of tokens, for instance); None: the mean. A ratio of nothing to nothing counts as 0.
    With several runs the value is the mean over seeds, and each resample draws the seeds as well as the units (a
    crossed bootstrap), so that the interval covers both. With few seeds their share of the spread is underestimated by
    (seeds - 1) / seeds.
    Raises ValueError when there are no units.
    """
    value, found = resampled(numerator, denominator, resamples=resamples, seed=seed)
    return _estimate(value, found, np.shape(numerator)[-1])


def mean_of_parts(
    parts: Sequence[tuple[np.ndarray, np.ndarray | None]], *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean over several benchmarks, each of which counts alike, with its interval; n counts all of their units.

    parts: numerator and denominator of each, as `interval` takes them, with the same runs in all. Units of two
    benchmarks are drawn apart, the runs together: one run has made the numbers of all of them. Raises ValueError when
    there are no parts, or one has no units.
    """
    if not parts:
        raise ValueError("a mean over 0 benchmarks was asked for; give at least one")
    drawn = [
        resampled(top, bottom, resamples=resamples, seed=seed, part=place) for place, (top, bottom) in enumerate(parts)
    ]
    values, draws = zip(*drawn, strict=True)
    return _estimate(float(np.mean(values)), np.mean(draws, axis=0), sum(np.shape(top)[-1] for top, _ in parts))


def _estimate(value: float, draws: np.ndarray, n: int) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high), n=n)


def resampled(
    numerator: np.ndarray, denominator: np.ndarray | None = None, *, resamples: int = 2000, seed: int = 0, part: int = 0
) -> tuple[float, np.ndarray]:
    """What `interval` is made of: the value, and the same of each resample, float64 [resamples].

    Takes and raises what `interval` does. `part` tells the units of several benchmarks apart. Equal numbers of seeds
    and units are resampled alike, so that anything computed from several of these arrays, resample by resample, is
    paired.
    """
    top = np.atleast_2d(np.asarray(numerator, dtype=np.float64))
    runs, n = top.shape
    if n == 0:
        raise ValueError("an interval over 0 units was asked for; the benchmark needs at least one row")
    bottom = (
        np.ones_like(top) if denominator is None else np.broadcast_to(np.asarray(denominator, np.float64), top.shape)
    )
    over_units = resample_weights(n, resamples, seed + 2 * part)
    over_runs = resample_weights(runs, resamples, seed + 1)
    tops = np.einsum("rn,rn->r", over_runs @ top, over_units)
    bottoms = np.einsum("rn,rn->r", over_runs @ bottom, over_units)
    values = np.divide(tops, bottoms, out=np.zeros_like(tops), where=(bottoms != 0) | (tops != 0))
    whole = float(bottom.sum())
    return float(top.sum()) / whole if whole else 0.0, values


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    denominator: np.ndarray | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """`first` minus `second` on the same units (and the same seeds, row by row), as `interval` of their differences.

    first, second: [n] or [seeds, n], in the same order of units. denominator: what both share, as in `interval`.
    Raises ValueError when the shapes differ.
    """
    if np.shape(first) != np.shape(second):
        raise ValueError(
            "a paired difference needs the same units on both sides, got arrays of shapes "
            f"{np.shape(first)} and {np.shape(second)}; score both on the same benchmark rows"
        )
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return interval(difference, denominator, resamples=resamples, seed=seed)
