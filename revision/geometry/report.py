"""The geometry report: text clouds before and after alignment against the image cloud, as numbers and as one page."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from revision.geometry import measures


@dataclass(frozen=True)
class Cloud:
    """One cloud of unit rows and what the plots and the report share of it.

    Attributes:
        rows: float32 or float64 [n, d].
        mean: float64 [d].
        eigenvalues: of the covariance, float64, largest first.
        density: of the pairwise cosines, over equal bins of [-1, 1].
    """

    rows: np.ndarray
    mean: np.ndarray
    eigenvalues: np.ndarray
    density: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Cloud:
        """Measure a cloud of at least four rows."""
        return cls(
            rows, rows.mean(axis=0, dtype=np.float64), measures.spectrum(rows), measures.cosine_density(rows)
        )

    def numbers(self) -> dict[str, Any]:
        """The measures that need no other cloud, as JSON values."""
        return {
            "rows": len(self.rows),
            "trace": float(self.eigenvalues.sum()),
            "mean_norm": float(np.linalg.norm(self.mean)),
            "power_law_exponent": measures.power_law_exponent(self.eigenvalues),
            "power_law_ranks": list(measures.power_law_range(self.eigenvalues)),
            "effective_rank": measures.effective_rank(self.eigenvalues),
            "condition_number": measures.condition_number(self.eigenvalues),
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
    neighbours: Sequence[int] = (10, 20),
    pairs: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Measure raw and aligned text clouds against the image cloud.

    Args:
        image: unit rows [n, d].
        text: raw unit text rows [n, d]; sides of one size keep `knn_mixing` easy to read.
        aligned: mapped versions of `text`, row for row, by the name of their method.
        neighbours: numbers k of nearest neighbours.
        pairs: row numbers (of text, of image) that belong together, for the measures of pairs.
        seed: of the linear probe's split.
        on_step: called with a description before each of the `count_steps(len(aligned))` steps.

    Returns:
        The clouds, and numbers under `clouds`, `against_image`, `neighbours_kept` and, with pairs, `pairs`.

    Raises:
        ValueError: too few rows for a measure or for k neighbours.
    """
    if not neighbours or min(neighbours) < 1:
        raise ValueError(f"neighbours={list(neighbours)} must be a list of numbers from 1 on, such as [10, 20]")
    texts = {"text": text, **aligned}
    clouds = {}
    for name, rows in {"image": image, **texts}.items():
        on_step(f"{name}: spectrum and cosines")
        clouds[name] = Cloud.of(rows)
    against: dict[str, dict[str, Any]] = {}
    kept: dict[str, dict[int, float]] = {}
    for name, rows in texts.items():
        on_step(f"{name}: nearest neighbours")
        against[name] = _against_image(clouds[name], clouds["image"], neighbours, seed)
        if name in aligned:
            on_step(f"{name}: neighbours kept")
            kept[name] = measures.neighbour_overlap(text, rows, neighbours)
    numbers: dict[str, Any] = {
        "clouds": {name: cloud.numbers() for name, cloud in clouds.items()},
        "against_image": against,
        "perfect_mixing": measures.perfect_mixing(len(text), len(image)),
        "neighbours_kept": kept,
    }
    if pairs is not None:
        on_text, on_image = pairs
        numbers["pairs"] = {name: _pair_measures(rows[on_text], image[on_image]) for name, rows in texts.items()}
    return Comparison(clouds, numbers)


def count_steps(aligned: int) -> int:
    """How often `compare` reports a step, for a progress bar."""
    return 3 + 3 * aligned


def _against_image(cloud: Cloud, image: Cloud, neighbours: Sequence[int], seed: int) -> dict[str, Any]:
    return {
        "centroid_gap": float(np.linalg.norm(cloud.mean - image.mean)),
        "trace_ratio": float(image.eigenvalues.sum() / cloud.eigenvalues.sum()),
        "cosine_js_divergence": measures.js_divergence(cloud.density, image.density),
        "knn_mixing": measures.knn_mixing(cloud.rows, image.rows, neighbours),
        "probe_accuracy": measures.probe_accuracy(cloud.rows, image.rows, seed),
    }


def _pair_measures(text: np.ndarray, image: np.ndarray) -> dict[str, Any]:
    return {
        "count": len(text),
        "cosine": measures.paired_cosine(text, image),
        "text_to_image_at_1": measures.retrieval_at_1(text, image),
        "image_to_text_at_1": measures.retrieval_at_1(image, text),
    }
