"""How an alignment does on rows that it was not fitted on: what `sample_size` and `domain_transfer` share.

The gap is always measured on rows that no fit has seen, and without training noise, since the question is what the
statistics are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from revision.alignment import Alignment
from revision.alignment.rows import to_sphere
from revision.embeddings import EmbeddingStore
from revision.geometry import measures

Rows: TypeAlias = np.ndarray | EmbeddingStore
Make: TypeAlias = Callable[[str], Alignment]  # an unfitted alignment, by the name of its method
OnStep: TypeAlias = Callable[[str], None]
MEASURES = ("centroid_gap", "frechet_distance")


@dataclass(frozen=True)
class Domain:
    """Texts and images of one domain, rows [n, d] each, as arrays or as embedding stores; they need not be paired."""

    text: Rows
    image: Rows


@dataclass(frozen=True)
class Moments:
    """Mean [d] and covariance [d, d] of rows, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Moments:
        """Mean and covariance of rows [n, d]."""
        return cls(rows.mean(axis=0, dtype=np.float64), measures.covariance(rows))


def left(fitted: Alignment, text: np.ndarray, image: np.ndarray, unmoved: Moments) -> dict[str, float]:
    """The measures of rows under an alignment; `unmoved` are the moments of `image`, which most alignments leave."""
    moved = moved_by(fitted, image)
    return apart(fitted.apply(text), unmoved if moved is None else Moments.of(moved))


def moved_by(fitted: Alignment, image: np.ndarray) -> np.ndarray | None:
    """Unit image rows [n, d] as an alignment maps them at inference; None where it leaves them (all but Unicorn)."""
    return fitted.apply_to_images(image) if fitted.moves_images else None


def apart(text: np.ndarray, image: Moments) -> dict[str, float]:
    """The measures of mapped text rows [n, d] against the image moments."""
    own = Moments.of(text)
    return {
        "centroid_gap": float(np.linalg.norm(own.mean - image.mean)),
        "frechet_distance": measures.frechet_distance(own.mean, own.covariance, image.mean, image.covariance),
    }


def mean_of(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over trials."""
    return {measure: float(np.mean([value[measure] for value in values])) for measure in MEASURES}


def draw(rows: Rows, count: int, seed: list[int]) -> np.ndarray:
    """Different row numbers in random order, int64 [count].

    The seed is another one for texts than for images: the same numbers from stores of pairs would be a sample of pairs.
    """
    return np.random.default_rng(seed).choice(len(rows), count, replace=False)


def unit_rows(rows: Rows, numbers: np.ndarray) -> np.ndarray:
    """Unit rows, float32 [n, d], or float64 from a float64 array."""
    if not isinstance(rows, np.ndarray):
        return to_sphere(torch.from_numpy(np.array(rows.rows(numbers))).float(), str(rows.path)).numpy()
    working = torch.from_numpy(np.array(rows[numbers]))
    return to_sphere(working if working.dtype is torch.float64 else working.float(), "rows").numpy()
