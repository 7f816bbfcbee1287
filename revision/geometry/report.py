"""The numbers of the geometry report: text clouds before and after alignment, against the image cloud."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from revision.geometry import measures, pairwise


@dataclass(frozen=True)
class Cloud:
    """One cloud of unit rows and what the plots and the report share of it.

    Attributes:
        rows: float32 or float64 [n, d].
        mean: float64 [d].
        covariance: float64 [d, d].
        eigenvalues: of the covariance, float64, largest first.
        density: of the pairwise cosines, over equal bins of [-1, 1].
    """

    rows: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    eigenvalues: np.ndarray
    density: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Cloud:
        """Measure a cloud of at least four rows."""
        mean, sigma = rows.mean(axis=0, dtype=np.float64), measures.covariance(rows)
        return cls(rows, mean, sigma, measures.eigenvalues_of(sigma, len(rows)), pairwise.cosine_density(rows))

    @property
    def trace(self) -> float:
        """Trace of the covariance."""
        return float(np.trace(self.covariance))

    @property
    def bin_edges(self) -> np.ndarray:
        """Edges of the density's bins, float64 [bins + 1]."""
        return np.linspace(-1, 1, len(self.density) + 1)

    def numbers(self) -> dict[str, Any]:
        """The measures that need no other cloud, as JSON values; lists are as long as rows are wide, or as the bins."""
        return {
            "rows": len(self.rows),
            "trace": self.trace,
            "mean_norm": float(np.linalg.norm(self.mean)),
            "power_law_exponent": measures.power_law_exponent(self.eigenvalues),
            "power_law_ranks": list(measures.power_law_range(self.eigenvalues)),
            "effective_rank": measures.effective_rank(self.eigenvalues),
            "condition_number": measures.condition_number(self.eigenvalues),
            "spectrum": self.eigenvalues.tolist(),
            "cosine_density": {"edges": self.bin_edges.tolist(), "values": self.density.tolist()},
        }


@dataclass(frozen=True)
class Comparison:
    """Clouds by name and the numbers of the report; the image cloud is `image`, the raw text cloud `text`."""

    clouds: dict[str, Cloud]
    numbers: dict[str, Any]


def compare(
    image: np.ndarray,
    text: np.ndarray,
    aligned: dict[str, np.ndarray],
    *,
    moved_images: Mapping[str, np.ndarray] | None = None,
    neighbours: Sequence[int] = (10, 20),
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Measure raw and aligned text clouds against the image cloud.

    Args:
        image: unit rows [n, d].
        text: raw unit text rows [n, d]; sides of one size keep `knn_mixing` easy to read.
        aligned: mapped versions of `text`, row for row, by the name of their method.
        moved_images: mapped versions of `image`, of those methods that map images too (Unicorn); their text clouds are
            held against these.
        neighbours: numbers k of nearest neighbours.
        seed: of the linear probe's split and of the halves.
        on_step: called with a description before each of the `count_steps(len(aligned))` steps.

    Returns:
        The clouds, and numbers under `clouds`, `against_image`, `image_halves`, `centroid_gap_floor`, `perfect_mixing`,
        `neighbours_kept`, `neighbour_search` and `moved_images`, the names of the methods that map images.
        `image_halves` has the measures of `against_image` for one random half of the image rows against the other: as
        close as clouds of half the size can come.

    Raises:
        ValueError: too few rows for a measure or for k neighbours.
    """
    if not neighbours or min(neighbours) < 1:
        raise ValueError(f"neighbours={list(neighbours)} must be a list of numbers from 1 on, such as [10, 20]")
    texts, moved = {"text": text, **aligned}, moved_images or {}
    clouds = {}
    for name, rows in {"image": image, **texts}.items():
        on_step(f"{name}: spectrum and cosines")
        clouds[name] = Cloud.of(rows)
    against: dict[str, dict[str, Any]] = {}
    for name in texts:
        on_step(f"{name}: against the images")
        target = Cloud.of(moved[name]) if name in moved else clouds["image"]
        against[name] = _against_image(clouds[name], target, neighbours, seed)
    on_step("image: one half against the other")
    halves = _halves_of_image(image, neighbours, seed)
    kept: dict[str, dict[int, float]] = {}
    if aligned:
        on_step("text: nearest neighbours")
        before = pairwise.neighbours(text, max(neighbours))
    for name, rows in aligned.items():
        on_step(f"{name}: neighbours kept")
        kept[name] = pairwise.shared_neighbours(before, pairwise.neighbours(rows, max(neighbours)), neighbours)
    numbers: dict[str, Any] = {
        "clouds": {name: cloud.numbers() for name, cloud in clouds.items()},
        "against_image": against,
        "image_halves": halves,
        "centroid_gap_floor": measures.centroid_gap_floor(text, image),
        "perfect_mixing": pairwise.perfect_mixing(len(text), len(image)),
        "neighbours_kept": kept,
        "moved_images": list(moved),
        "neighbour_search": "faiss" if pairwise.faiss_is_there() and image.dtype == np.float32 else "blocks",
    }
    return Comparison(clouds, numbers)


def count_steps(aligned: int) -> int:
    """How often `compare` reports a step, for a progress bar."""
    return 4 + 3 * aligned + (aligned > 0)


def _against_image(cloud: Cloud, image: Cloud, neighbours: Sequence[int], seed: int) -> dict[str, Any]:
    apart = measures.covariance_distance(cloud.covariance, image.covariance)
    mixing = pairwise.knn_mixing_by_side(cloud.rows, image.rows, neighbours)
    return {
        "centroid_gap": measures.centroid_gap(cloud.rows, image.rows),
        "trace_ratio": image.trace / cloud.trace,
        "covariance_distance": apart,
        "covariance_distance_relative": apart / float(np.linalg.norm(image.covariance)),
        "frechet_distance": measures.frechet_distance(cloud.mean, cloud.covariance, image.mean, image.covariance),
        "cosine_js_divergence": pairwise.js_divergence(cloud.density, image.density),
        "knn_mixing": mixing["all"],
        "knn_mixing_of_text": mixing["text"],
        "knn_mixing_of_image": mixing["image"],
        "probe_accuracy": measures.probe_accuracy(cloud.rows, image.rows, seed),
    }


def _halves_of_image(image: np.ndarray, neighbours: Sequence[int], seed: int) -> dict[str, Any] | None:
    """None where a half is too small for the neighbours or the measures."""
    half = len(image) // 2
    if half < 4:
        return None
    order = np.random.default_rng(seed).permutation(len(image))
    one, other = Cloud.of(image[order[:half]]), Cloud.of(image[order[half : 2 * half]])
    possible = [k for k in neighbours if k < 2 * half]
    return _against_image(one, other, possible, seed) if possible else None
