"""Measures of how two clouds of embeddings lie to each other, as functions of arrays.

`rows` are unit vectors [n, d], numpy, float32 or float64; moments are float64, cosines of the dtype of the rows.
Everything pairwise is exact: all pairs, block by block, in bounded memory. Where ReVision v3 does not define a measure
that it reports, the docstring says what is meant here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 2**22  # entries of a block of the similarity matrix: 16 MiB of float32


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
    values = np.linalg.eigvalsh(covariance(rows))[::-1][: len(rows) - 1]
    if not values.sum() > 1e-24:
        raise ValueError(f"the {len(rows)} rows are all equal and have no spectrum: give rows that differ")
    # eigvalsh errs by about eps times the largest eigenvalue, in each of the others.
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


def cosine_density(rows: np.ndarray, bins: int = 200) -> np.ndarray:
    """Density of the cosines of all pairs i < j, as a histogram over [-1, 1].

    Returns:
        float64 [bins]; sums to one when multiplied by the bin width 2 / bins.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError(f"pairwise cosines need at least 2 rows, there are {len(rows)}: use more rows")
    counts = np.zeros(bins, dtype=np.int64)
    size = max(1, BLOCK // len(rows))
    for start in range(0, len(rows), size):
        similar = rows[start : start + size] @ rows[start:].T
        upper = similar[np.triu(np.ones(similar.shape, dtype=bool), 1)]
        slots = ((upper + 1) * (bins / 2)).astype(np.int64).clip(0, bins - 1)
        counts += np.bincount(slots, minlength=bins)
    return counts / counts.sum() * (bins / 2)


def js_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms over the same bins, in nats: 0 for equal ones, at most ln 2."""
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    return float((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


def neighbours(rows: np.ndarray, k: int) -> np.ndarray:
    """The k rows with the largest cosine to each row, itself excluded.

    Returns:
        int64 [n, k], nearest first.

    Raises:
        ValueError: k is not between 1 and n - 1.
    """
    if not 1 <= k < len(rows):
        raise ValueError(f"k={k} neighbours cannot be found among {len(rows)} rows: lower k or use more rows")
    found = np.empty((len(rows), k), dtype=np.int64)
    for start, similar in _similarities(rows, rows):
        block = np.arange(len(similar))
        similar[block, start + block] = -np.inf
        best = np.argpartition(similar, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1, kind="stable")
        found[start : start + len(similar)] = np.take_along_axis(best, order, axis=1)
    return found


def knn_mixing(text: np.ndarray, image: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Share of the k nearest neighbours, in the union of both sides, that are of the other side; mean over all rows.

    0 for clouds apart. For clouds that cannot be told apart `perfect_mixing`, about a half when both are equally large;
    give sides of one size, since the share depends on it. The paper reports this measure without defining it.
    """
    found = neighbours(np.concatenate([text, image]), max(ks))
    is_image = np.arange(len(found)) >= len(text)
    other = is_image[found] != is_image[:, None]
    return {k: float(other[:, :k].mean()) for k in ks}


def perfect_mixing(text_count: int, image_count: int) -> float:
    """What `knn_mixing` expects of two samples of one distribution."""
    total = text_count + image_count
    return 2 * text_count * image_count / (total * (total - 1))


def neighbour_overlap(before: np.ndarray, after: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Share of each row's k nearest neighbours that it keeps when the cloud is mapped; row i is the same in both."""
    old, new = neighbours(before, max(ks)), neighbours(after, max(ks))
    return {k: float((old[:, :k, None] == new[:, None, :k]).any(axis=2).mean()) for k in ks}


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


def paired_cosine(text: np.ndarray, image: np.ndarray) -> float:
    """Mean cosine of row i of one side with row i of the other."""
    return float(np.einsum("nd,nd->n", text, image).mean(dtype=np.float64))


def retrieval_at_1(queries: np.ndarray, candidates: np.ndarray) -> float:
    """Share of queries whose nearest candidate is the one of the same row number."""
    hits = sum(
        int((similar.argmax(axis=1) == np.arange(start, start + len(similar))).sum())
        for start, similar in _similarities(queries, candidates)
    )
    return hits / len(queries)


def _halves(rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(len(rows))
    return rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]


def _similarities(queries: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks [b, n_keys] of the matrix of dot products, each with the number of its first query."""
    size = max(1, BLOCK // len(keys))
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size] @ keys.T
