"""Measures of one cloud of embeddings, and of the distance of two, by their means and covariances.

`rows` are unit vectors [n, d], numpy, float32 or float64; moments are float64 throughout. What compares rows one by one
(cosines, neighbours, retrieval) is in `pairwise`, what needs pairs of rows in `paired`. Where ReVision v3 does not
define a measure that it reports, the docstring says what is meant here. docs/geometry.md has the formulas side by side.
"""

from __future__ import annotations

import numpy as np


def centroid_gap(a: np.ndarray, b: np.ndarray) -> float:
    """||E[a] - E[b]||, float64: the modality gap as a distance of means (ReVision v3, Sec. 3)."""
    return float(np.linalg.norm(a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)))


def centroid_gap_floor(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of the gap that sampling alone leaves between two samples of clouds with one mean.

    A gap of the order of this number, sqrt(T_a / n_a + T_b / n_b), says nothing: measure it over more rows.
    """
    return float(np.sqrt(trace(a) / len(a) + trace(b) / len(b)))


def trace(rows: np.ndarray) -> float:
    """Trace of the covariance, E||e - E[e]||^2, float64 (ReVision v3, Sec. 4)."""
    return float(np.square(rows - rows.mean(axis=0, dtype=np.float64)).sum() / len(rows))


def covariance(rows: np.ndarray) -> np.ndarray:
    """Covariance matrix, float64 [d, d], divided by n."""
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    return centred.T @ centred / len(rows)


def phantom_drift(mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """How far putting a cloud on the sphere moves its mean, to second order in its spread (ReVision v3, Sec. 3).

    For z = mean + eps with E[eps] = 0 and Cov(eps) = sigma, with r = ||mean|| and a = mean / r:
    E[z / ||z||] - a = (-sigma a - a tr(sigma) / 2 + 3/2 a (a' sigma a)) / r^2. Its tangential part, which turns the
    mean, is -(sigma a - a (a' sigma a)) / r^2; it vanishes for an isotropic cloud.

    Args:
        mean: [d], not zero.
        sigma: covariance [d, d].

    Returns:
        float [d].
    """
    radius = np.linalg.norm(mean)
    axis = mean / radius
    pulled = sigma @ axis
    return (-pulled - axis * (np.trace(sigma) / 2) + 1.5 * axis * (axis @ pulled)) / radius**2


def spectrum(rows: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance, float64, largest first; those that rank and rounding make zero are left out.

    Returns:
        [r] with r <= min(n - 1, d); their sum is the trace.

    Raises:
        ValueError: all rows are equal.
    """
    return eigenvalues_of(covariance(rows), len(rows))


def eigenvalues_of(sigma: np.ndarray, count: int) -> np.ndarray:
    """As `spectrum`, from the covariance matrix [d, d] of `count` rows."""
    kept = without_zeros(np.linalg.eigvalsh(sigma), count)
    if not len(kept):
        raise ValueError(f"the {count} rows are all equal and have no spectrum: give rows that differ")
    return kept


def without_zeros(ascending: np.ndarray, count: int) -> np.ndarray:
    """Eigenvalues of a covariance of `count` rows, largest first, of those that sampling and rounding leave.

    At most `count` - 1 differ from zero, and rounding moves each by up to about d eps times the largest. Empty where
    all rows are equal.
    """
    values = ascending[::-1][: count - 1]
    if not values.sum() > 1e-24:
        return values[:0]
    return values[values > values[0] * len(values) * np.finfo(np.float64).eps]


def power_law_range(eigenvalues: np.ndarray) -> tuple[int, int]:
    """First and last rank (from 1) that the exponent is fitted over: from 2 % to 50 % of the spectrum's length.

    The first few eigenvalues are topics, not a law; the last ones are rounding and sample size. The paper gives no
    range, so its exponents compare only roughly with these; those within one report compare exactly.
    """
    length = len(eigenvalues)
    return max(1, length // 50), max(3, length // 2)


def power_law_exponent(eigenvalues: np.ndarray) -> float:
    """alpha in lambda_k ~ k^-alpha: least squares of log lambda on log k over `power_law_range`.

    Raises:
        ValueError: fewer than three eigenvalues.
    """
    if len(eigenvalues) < 3:
        raise ValueError(f"a power law needs at least 3 eigenvalues, there are {len(eigenvalues)}: use more rows")
    first, last = power_law_range(eigenvalues)
    ranks = np.arange(first, last + 1)
    slope = np.polyfit(np.log(ranks), np.log(eigenvalues[first - 1 : last]), 1)[0]
    return -float(slope)


def effective_rank(eigenvalues: np.ndarray) -> float:
    """exp of the entropy of the normalised eigenvalues (Roy and Vetterli, 2007): d for an isotropic cloud."""
    shares = eigenvalues / eigenvalues.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def condition_number(eigenvalues: np.ndarray) -> float:
    """Largest over smallest eigenvalue of those that `spectrum` keeps."""
    return float(eigenvalues[0] / eigenvalues[-1])


def covariance_distance(sigma_a: np.ndarray, sigma_b: np.ndarray) -> float:
    """G_Sigma = ||Sigma_a - Sigma_b||_F, the covariances' counterpart of the centroid gap G_mu = ||mu_a - mu_b||.

    Args:
        sigma_a, sigma_b: covariance matrices [d, d].
    """
    return float(np.linalg.norm(sigma_a - sigma_b))


def frechet_distance(mean_a: np.ndarray, sigma_a: np.ndarray, mean_b: np.ndarray, sigma_b: np.ndarray) -> float:
    """Frechet (2-Wasserstein) distance of two Gaussians with these moments; its square is what image metrics call FID.

    d^2 = ||mu_a - mu_b||^2 + tr(Sigma_a + Sigma_b - 2 (Sigma_a^1/2 Sigma_b Sigma_a^1/2)^1/2). The last trace is the
    nuclear norm of Sigma_a^1/2 Sigma_b^1/2, which is computed as such: roots of eigenvalues that rounding leaves a
    little off zero would cost half of the digits. Two samples of one cloud are about sqrt(tr Sigma d / n) apart.

    Args:
        mean_a, mean_b: [d].
        sigma_a, sigma_b: covariance matrices [d, d].
    """
    shared = np.linalg.svd(_root(sigma_a) @ _root(sigma_b), compute_uv=False).sum()
    spread = np.trace(sigma_a) + np.trace(sigma_b) - 2 * shared
    return float(np.sqrt(max(0.0, float(np.square(mean_a - mean_b).sum() + spread))))


def _root(sigma: np.ndarray) -> np.ndarray:
    """Symmetric square root of a covariance matrix [d, d]."""
    values, vectors = np.linalg.eigh(sigma)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def probe_accuracy(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Accuracy of a linear probe that tells the two sides apart, on the half of the rows it has not seen.

    The probe is Fisher's discriminant in closed form, w = (S + r I)^-1 (E[a] - E[b]) with S the mean of both
    covariances and r = 1e-3 tr(S) / d, and the threshold half-way between the projected means. Both sides count alike:
    0.5 is chance.

    Raises:
        ValueError: a side has fewer than four rows.
    """
    if min(len(a), len(b)) < 4:
        raise ValueError(f"a linear probe needs at least 4 rows a side, there are {len(a)} and {len(b)}: use more rows")
    rng = np.random.default_rng(seed)
    (seen_a, new_a), (seen_b, new_b) = _halves(a, rng), _halves(b, rng)
    mean_a, mean_b = seen_a.mean(axis=0, dtype=np.float64), seen_b.mean(axis=0, dtype=np.float64)
    pooled = (covariance(seen_a) + covariance(seen_b)) / 2
    pooled += np.eye(len(pooled)) * (1e-3 * np.trace(pooled) / len(pooled))
    direction = np.linalg.solve(pooled, mean_a - mean_b)
    threshold = direction @ (mean_a + mean_b) / 2
    return float(((new_a @ direction > threshold).mean() + (new_b @ direction <= threshold).mean()) / 2)


def _halves(rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(len(rows))
    return rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]
