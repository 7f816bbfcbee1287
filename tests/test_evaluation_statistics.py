"""Bootstrap intervals against their analytic values, and what pairing does."""

import numpy as np
import pytest

from revision.evaluation.statistics import interval, paired_difference, resample_weights


def test_weights_are_draws_with_replacement() -> None:
    weights = resample_weights(7, 500, 3)
    counts = weights * 7
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(counts, counts.round(), atol=1e-12)
    assert counts.var() == pytest.approx(6 / 7, abs=0.05)  # binomial(7, 1/7)
    assert not np.array_equal(weights, resample_weights(7, 500, 4))


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, size=900)
    found = interval(values, resamples=4000, seed=1)
    half = 1.96 * values.std() / np.sqrt(900)
    assert found.value == pytest.approx(values.mean())
    assert found.n == 900
    assert found.low == pytest.approx(values.mean() - half, abs=0.04 * half + 0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.04 * half + 0.02)


def test_ratio_weighs_units_by_their_denominator() -> None:
    found = interval(np.array([10.0, 2.0]), np.array([10.0, 1.0]), resamples=2000)
    assert found.value == pytest.approx(12 / 11)  # not the mean of the ratios, 1.5
    assert found.low == pytest.approx(1.0)
    assert found.high == pytest.approx(2.0)


def test_same_seed_same_interval() -> None:
    values = np.arange(30.0)
    assert interval(values, seed=5) == interval(values, seed=5)
    assert interval(values, seed=5) != interval(values, seed=6)


def test_seeds_widen_the_interval_by_their_own_spread() -> None:
    units = np.zeros((4, 200))
    alike = interval(units)
    apart = interval(units + np.array([[0.0], [1.0], [2.0], [3.0]]), resamples=4000)
    assert (alike.low, alike.high) == (0.0, 0.0)
    assert apart.value == pytest.approx(1.5)
    # Mean of four draws from {0, 1, 2, 3}: standard deviation sqrt(1.25 / 4) = .559.
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * 0.559, rel=0.15)


def test_pairing_removes_what_both_share() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(0, 10, size=(3, 400))
    first, second = shared + 0.5, shared + random.normal(0, 0.1, size=(3, 400))
    found = paired_difference(first, second)
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.05
    alone = interval(first)
    assert alone.high - alone.low > 1


def test_per_token_difference_shares_the_denominator() -> None:
    found = paired_difference(np.array([6.0, 9.0]), np.array([4.0, 5.0]), np.array([2.0, 4.0]))
    assert found.value == pytest.approx(6 / 6)


def test_errors_are_sentences() -> None:
    with pytest.raises(ValueError, match="0 units was asked for; the benchmark needs at least one row"):
        interval(np.array([]))
    with pytest.raises(ValueError, match="needs the same units on both sides"):
        paired_difference(np.zeros(3), np.zeros(4))
