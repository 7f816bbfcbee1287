"""Measures that compare rows one by one: cosines, nearest neighbours, retrieval.

`rows` are unit vectors [n, d], numpy, float32 or float64; cosines have the dtype of the rows. All of it is exact: every
pair counts, block by block, in bounded memory. Where ReVision v3 does not define a measure that it reports, the
docstring says what is meant here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import numpy as np

from revision.geometry.rows import require_unit

BLOCK = 2**22  # entries of a block of the similarity matrix: 16 MiB of float32


def cosine_density(rows: np.ndarray, bins: int = 200) -> np.ndarray:
    """Density of the cosines of all pairs i < j, as a histogram over [-1, 1].

    Returns:
        float64 [bins]; sums to one when multiplied by the bin width 2 / bins.

    Raises:
        ValueError: fewer than two rows, or one that is not of norm one.
    """
    require_unit(rows=rows)
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


@cache
def faiss_is_there() -> bool:
    """Whether the optional faiss (extra `faiss`) is installed."""
    return find_spec("faiss") is not None


def neighbours(rows: np.ndarray, k: int, *, faiss: bool | None = None) -> np.ndarray:
    """The k rows with the largest cosine to each row, itself excluded.

    Args:
        rows: unit rows [n, d].
        k: number of neighbours.
        faiss: search with faiss's flat index, which is exact too and works in float32, or block by block in numpy;
            None: with faiss where it is installed and the rows are float32. Only ties may come out differently.

    Returns:
        int64 [n, k], nearest first.

    Raises:
        ValueError: k is not between 1 and n - 1, or a row is not of norm one.
    """
    require_unit(rows=rows)
    if not 1 <= k < len(rows):
        raise ValueError(f"k={k} neighbours cannot be found among {len(rows)} rows: lower k or use more rows")
    if faiss is None:
        faiss = faiss_is_there() and rows.dtype == np.float32
    return _by_faiss(rows, k) if faiss else _by_blocks(rows, k)


def _by_blocks(rows: np.ndarray, k: int) -> np.ndarray:
    found = np.empty((len(rows), k), dtype=np.int64)
    for start, similar in _similarities(rows, rows):
        block = np.arange(len(similar))
        similar[block, start + block] = -np.inf
        best = np.argpartition(similar, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1, kind="stable")
        found[start : start + len(similar)] = np.take_along_axis(best, order, axis=1)
    return found


def _by_faiss(rows: np.ndarray, k: int) -> np.ndarray:
    """One neighbour more is asked for, since the row itself is among them, though not first where it has duplicates."""
    index = import_module("faiss").IndexFlatIP(rows.shape[1])
    single = np.ascontiguousarray(rows, dtype=np.float32)
    index.add(single)
    found = np.asarray(index.search(single, k + 1)[1], dtype=np.int64)
    own = found == np.arange(len(rows))[:, None]
    own[~own.any(axis=1), -1] = True  # a row with more than k duplicates may miss itself: then the last one goes
    return found[~own].reshape(len(rows), k)


def knn_mixing(
    text: np.ndarray, image: np.ndarray, ks: Sequence[int], *, faiss: bool | None = None
) -> dict[int, float]:
    """Share of the k nearest neighbours, in the union of both sides, that are of the other side; mean over all rows.

    0 for clouds apart. For clouds that cannot be told apart `perfect_mixing`, about a half when both are equally large;
    give sides of one size, since the share depends on it. The paper reports this measure without defining it.
    """
    other = _of_other_side(text, image, max(ks), faiss)
    return {k: float(other[:, :k].mean()) for k in ks}


def knn_mixing_by_side(
    text: np.ndarray, image: np.ndarray, ks: Sequence[int], *, faiss: bool | None = None
) -> dict[str, dict[int, float]]:
    """`knn_mixing` over `all` rows, over the rows of `text`, and over those of `image`.

    The two sides tell a cloud that lies among the other from one that is merely wider: far from one another, its rows
    have only the other side for neighbours, while that side has none of them, and the mean of both looks like mixing.
    """
    other = _of_other_side(text, image, max(ks), faiss)
    parts = {"all": other, "text": other[: len(text)], "image": other[len(text) :]}
    return {name: {k: float(part[:, :k].mean()) for k in ks} for name, part in parts.items()}


def _of_other_side(text: np.ndarray, image: np.ndarray, k: int, faiss: bool | None) -> np.ndarray:
    """Whether each of the k nearest neighbours in the union is of the other side: bool [n_text + n_image, k]."""
    found = neighbours(np.concatenate([text, image]), k, faiss=faiss)
    is_image = np.arange(len(found)) >= len(text)
    return np.asarray(is_image[found] != is_image[:, None])


def perfect_mixing(text_count: int, image_count: int) -> float:
    """What `knn_mixing` expects of two samples of one distribution."""
    total = text_count + image_count
    return 2 * text_count * image_count / (total * (total - 1))


def neighbour_overlap(before: np.ndarray, after: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Share of each row's k nearest neighbours that it keeps when the cloud is mapped; row i is the same in both."""
    return shared_neighbours(neighbours(before, max(ks)), neighbours(after, max(ks)), ks)


def shared_neighbours(old: np.ndarray, new: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """As `neighbour_overlap`, from what `neighbours` found: int64 [n, >= max(ks)] each."""
    return {k: float((old[:, :k, None] == new[:, None, :k]).any(axis=2).mean()) for k in ks}


def retrieval(queries: np.ndarray, candidates: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """R@k: share of queries whose own candidate, of the same row number, is among the k of largest cosine.

    Candidates that tie with the own one share the places they hold evenly. So captions that occur twice are no mistake
    for the half of the time, and candidates that are all alike give chance, k / n, not 1.

    Args:
        queries, candidates: unit rows [n, d], row i of one belongs to row i of the other.
        ks: numbers of candidates looked at; those beyond n count as n.

    Raises:
        ValueError: sides of different length or width, or a row that is not of norm one.
    """
    require_unit(queries=queries, candidates=candidates)
    if len(queries) != len(candidates):
        raise ValueError(f"there are {len(queries)} queries but {len(candidates)} candidates: give pairs, row by row")
    hits = dict.fromkeys(ks, 0.0)
    for start, similar in _similarities(queries, candidates):
        block = np.arange(len(similar))
        own = similar[block, start + block][:, None]
        better, equal = (similar > own).sum(axis=1), (similar == own).sum(axis=1)
        for k in ks:
            hits[k] += float(((k - better) / equal).clip(0, 1).sum())
    return {k: hit / len(queries) for k, hit in hits.items()}


def _similarities(queries: np.ndarray, keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks [b, n_keys] of the matrix of dot products, each with the number of its first query."""
    size = max(1, BLOCK // len(keys))
    for start in range(0, len(queries), size):
        yield start, queries[start : start + size] @ keys.T
