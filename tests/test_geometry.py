"""Measures of means and covariances, each against a naive float64 computation of its own."""

import math

import numpy as np
import pytest

from revision.geometry import measures

DIM = 12


def cloud(count: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Anisotropic unit rows, float64 [count, DIM]."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, DIM)) * np.arange(1, DIM + 1) ** -0.5 + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_centroid_gap_and_its_floor() -> None:
    a, b = cloud(50), cloud(70, 1, 0.3)
    apart = sum((sum(a[:, j]) / 50 - sum(b[:, j]) / 70) ** 2 for j in range(DIM))
    assert measures.centroid_gap(a, b) == pytest.approx(math.sqrt(apart), rel=1e-12)
    gaps = [measures.centroid_gap(cloud(100, 2 * i), cloud(200, 2 * i + 1)) for i in range(300)]
    floor = measures.centroid_gap_floor(cloud(100, 0), cloud(200, 1))
    assert np.sqrt(np.mean(np.square(gaps))) == pytest.approx(floor, rel=0.1)


def test_trace_and_spectrum() -> None:
    rows = cloud(80, shift=0.2)
    mean = [math.fsum(rows[:, j]) / 80 for j in range(DIM)]
    trace = math.fsum((rows[i, j] - mean[j]) ** 2 for i in range(80) for j in range(DIM)) / 80
    assert measures.trace(rows) == pytest.approx(trace, rel=1e-12)
    assert measures.trace(rows) == pytest.approx(1 - np.linalg.norm(rows.mean(axis=0)) ** 2, rel=1e-12)
    singular = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(measures.spectrum(rows), singular**2 / 80, rtol=1e-9)
    assert measures.condition_number(measures.spectrum(rows)) == pytest.approx((singular[0] / singular[-1]) ** 2)


def test_spectrum_leaves_out_what_rank_makes_zero() -> None:
    assert len(measures.spectrum(cloud(6))) == 5
    flat = cloud(80)
    flat[:, 7:] = 0
    assert len(measures.spectrum(flat)) == 7


def test_rows_that_are_all_equal_have_no_spectrum() -> None:
    with pytest.raises(ValueError, match="the 9 rows are all equal"):
        measures.spectrum(np.tile(cloud(1), (9, 1)))


def test_effective_rank() -> None:
    assert measures.effective_rank(np.full(9, 0.3)) == pytest.approx(9)
    assert measures.effective_rank(np.array([1.0, 1e-9])) == pytest.approx(1, abs=1e-6)
    assert measures.effective_rank(np.array([3.0, 1.0])) == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize("alpha", [0.5, 1.83])
def test_power_law_exponent(alpha: float) -> None:
    eigenvalues = 2.5 * np.arange(1, 201) ** -alpha
    assert measures.power_law_exponent(eigenvalues) == pytest.approx(alpha, rel=1e-10)
    first, last = measures.power_law_range(eigenvalues)
    assert (first, last) == (4, 100)
    eigenvalues[: first - 1] *= 7
    eigenvalues[last:] /= 9
    assert measures.power_law_exponent(eigenvalues) == pytest.approx(alpha, rel=1e-10)


def test_two_eigenvalues_make_no_power_law() -> None:
    with pytest.raises(ValueError, match="at least 3 eigenvalues, there are 2"):
        measures.power_law_exponent(np.array([1.0, 0.5]))


def test_probe_accuracy_is_that_of_least_squares() -> None:
    """Fisher's discriminant is proportional to the least-squares fit of the labels; here with the same halves."""
    a, b = cloud(301, shift=0.1), cloud(301, 1, 0.25)
    rng = np.random.default_rng(3)
    order_a, order_b = rng.permutation(301), rng.permutation(301)
    design = np.concatenate([a[order_a[:150]], b[order_b[:150]]])
    weights = np.linalg.lstsq(np.c_[design, np.ones(300)], np.repeat([1.0, -1.0], 150), rcond=None)[0]
    right = np.mean(np.c_[a[order_a[150:]], np.ones(151)] @ weights > 0) / 2
    right += np.mean(np.c_[b[order_b[150:]], np.ones(151)] @ weights <= 0) / 2
    assert 0.6 < right < 0.99
    assert measures.probe_accuracy(a, b, seed=3) == pytest.approx(right, abs=0.02)
    assert measures.probe_accuracy(cloud(301, 0, -9), cloud(301, 1, 9)) == 1
    chance = [measures.probe_accuracy(cloud(200, 2 * i), cloud(300, 2 * i + 1)) for i in range(30)]
    assert np.mean(chance) == pytest.approx(0.5, abs=0.03)


def test_a_probe_needs_rows() -> None:
    with pytest.raises(ValueError, match="at least 4 rows a side, there are 3 and 9"):
        measures.probe_accuracy(cloud(3), cloud(9))


def test_phantom_drift_matches_simulation() -> None:
    rng = np.random.default_rng(0)
    mean = np.array([1.2, 0.4, -0.3, 0.2])
    root = rng.normal(size=(4, 4)) * 0.03
    noise = rng.normal(size=(200_000, 4)) @ root.T
    rows = np.concatenate([mean + noise, mean - noise])  # in pairs, so that odd orders cancel
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    drift = measures.phantom_drift(mean, root @ root.T)
    found = unit.mean(axis=0) - mean / np.linalg.norm(mean)
    np.testing.assert_allclose(found, drift, rtol=0, atol=0.02 * float(np.linalg.norm(drift)))
    axis = mean / np.linalg.norm(mean)
    isotropic = measures.phantom_drift(mean, np.eye(4))
    np.testing.assert_allclose(isotropic, axis * (axis @ isotropic), atol=1e-15)  # no tangential part


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_the_sphere_the_trace_is_one_minus_the_squared_mean(dtype: str) -> None:
    """T = 1 - ||mu||^2 exactly, to the precision in which the rows are unit (ReVision v3, Sec. 4)."""
    rows = cloud(500, shift=0.3).astype(dtype)
    mean = rows.astype(np.float64).mean(axis=0)
    assert measures.trace(rows) == pytest.approx(1 - mean @ mean, abs=1e-7 if dtype == "float32" else 1e-14)
    assert measures.trace(rows) == pytest.approx(measures.spectrum(rows).sum(), rel=1e-12)


def test_covariance_distance() -> None:
    a, b = measures.covariance(cloud(60)), measures.covariance(cloud(80, 1, 0.3))
    square = math.fsum((a[i, j] - b[i, j]) ** 2 for i in range(DIM) for j in range(DIM))
    assert measures.covariance_distance(a, b) == pytest.approx(math.sqrt(square), rel=1e-12)


def test_frechet_distance() -> None:
    text, image = cloud(60, shift=-0.2), cloud(80, 1, 0.3)
    means, sigmas = [rows.mean(axis=0) for rows in (text, image)], [np.cov(rows.T, bias=True) for rows in (text, image)]
    # tr (A^1/2 B A^1/2)^1/2 is the sum of the roots of the eigenvalues of A B, which is not symmetric.
    shared = np.sqrt(np.linalg.eigvals(sigmas[0] @ sigmas[1]).real.clip(0)).sum()
    square = ((means[0] - means[1]) ** 2).sum() + np.trace(sigmas[0]) + np.trace(sigmas[1]) - 2 * shared
    found = measures.frechet_distance(means[0], sigmas[0], means[1], sigmas[1])
    assert found == pytest.approx(math.sqrt(square), rel=1e-9)
    assert found == pytest.approx(measures.frechet_distance(means[1], sigmas[1], means[0], sigmas[0]), rel=1e-12)


def test_frechet_distance_in_known_cases() -> None:
    scales = np.array([3.0, 2.0, 0.5])
    diagonal = measures.frechet_distance(np.zeros(3), np.diag(scales**2), np.ones(3), np.eye(3))
    assert diagonal == pytest.approx(math.sqrt(3 + ((scales - 1) ** 2).sum()))
    sigma = measures.covariance(cloud(6))  # of rank 5 in 12 dimensions
    assert measures.frechet_distance(np.zeros(DIM), sigma, np.zeros(DIM), sigma) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_row_order_changes_no_measure(dtype: str) -> None:
    a, b = cloud(90).astype(dtype), cloud(70, 1, 0.2).astype(dtype)
    order = np.random.default_rng(1).permutation(90)

    def measured(rows: np.ndarray) -> list[float]:
        spectrum, sigma = measures.spectrum(rows), measures.covariance(rows)
        other = b.mean(axis=0, dtype=np.float64), measures.covariance(b)
        return [
            measures.centroid_gap(rows, b), measures.centroid_gap_floor(rows, b), measures.trace(rows),
            measures.power_law_exponent(spectrum), measures.effective_rank(spectrum),
            measures.condition_number(spectrum), measures.covariance_distance(sigma, other[1]),
            measures.frechet_distance(rows.mean(axis=0, dtype=np.float64), sigma, *other),
        ]  # fmt: skip

    np.testing.assert_allclose(measured(a), measured(a[order]), rtol=1e-9)
