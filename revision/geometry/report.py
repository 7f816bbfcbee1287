"""The numbers of the geometry report: text clouds before and after alignment, against the image cloud."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
        mean = rows.mean(axis=0, dtype=np.float64)
        return cls(rows, mean, measures.spectrum(rows), measures.cosine_density(rows))

    def numbers(self) -> dict[str, Any]:
        """The measures that need no other cloud, as JSON values."""
        return {
            "rows": len(self.rows),
            "trace": measures.trace(self.rows),
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
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Comparison:
    """Measure raw and aligned text clouds against the image cloud.

    Args:
        image: unit rows [n, d].
        text: raw unit text rows [n, d]; sides of one size keep `knn_mixing` easy to read.
        aligned: mapped versions of `text`, row for row, by the name of their method.
        neighbours: numbers k of nearest neighbours.
        seed: of the linear probe's split.
        on_step: called with a description before each of the `count_steps(len(aligned))` steps.

    Returns:
        The clouds, and numbers under `clouds`, `against_image`, `centroid_gap_floor`, `perfect_mixing` and
        `neighbours_kept`.

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
        "centroid_gap_floor": measures.centroid_gap_floor(text, image),
        "perfect_mixing": measures.perfect_mixing(len(text), len(image)),
        "neighbours_kept": kept,
    }
    return Comparison(clouds, numbers)


def count_steps(aligned: int) -> int:
    """How often `compare` reports a step, for a progress bar."""
    return 3 + 3 * aligned


def _against_image(cloud: Cloud, image: Cloud, neighbours: Sequence[int], seed: int) -> dict[str, Any]:
    return {
        "centroid_gap": measures.centroid_gap(cloud.rows, image.rows),
        "trace_ratio": measures.trace(image.rows) / measures.trace(cloud.rows),
        "cosine_js_divergence": measures.js_divergence(cloud.density, image.density),
        "knn_mixing": measures.knn_mixing(cloud.rows, image.rows, neighbours),
        "probe_accuracy": measures.probe_accuracy(cloud.rows, image.rows, seed),
    }


def compare_pairs(text: np.ndarray, image: np.ndarray) -> dict[str, Any]:
    """Measures of unit rows [n, d] that belong together, row i of one side with row i of the other, as JSON values."""
    return {
        "count": len(text),
        "cosine": measures.paired_cosine(text, image),
        "text_to_image_at_1": measures.retrieval_at_1(text, image),
        "image_to_text_at_1": measures.retrieval_at_1(image, text),
    }


PAIR_LINES = {
    "cosine": "cosine of a pair",
    "text_to_image_at_1": "text to image, R@1",
    "image_to_text_at_1": "image to text, R@1",
}


@dataclass(frozen=True)
class Line:
    """One line of the report's table.

    Attributes:
        name: of the measure.
        meaning: what it says, in a few words.
        values: of each text cloud, raw first, then of the image cloud; None where the measure has none.
    """

    name: str
    meaning: str
    values: list[float | None]


def lines(report: dict[str, Any]) -> Iterator[Line]:
    """The report as a table, line by line; `report` is what `revision gap` writes to `report.json`."""
    against, clouds, texts = report["against_image"], report["clouds"], list(report["against_image"])

    def of_texts(values: dict[str, Any], field: str) -> list[float | None]:
        return [*(values[name][field] for name in texts), None]

    def of_clouds(field: str) -> list[float | None]:
        return [clouds[name][field] for name in [*texts, "image"]]

    gaps = [*(report["centroid_gap_all_rows"][name] for name in texts), None]
    floor = f"sampling alone gives about {report['centroid_gap_floor']:.2g}"
    densities = "pairwise-cosine densities against the image cloud's, in nats: 0 is equal, 0.693 apart"
    mixing = f"share of neighbours of the other side; {report['perfect_mixing']:.3f} if both sides were one"
    yield Line("centroid gap, all rows", "distance of the mean from the image mean; no noise added", gaps)
    yield Line("centroid gap, sample", floor, of_texts(against, "centroid_gap"))
    yield Line("trace", "trace of the covariance, E||e - mean||²", of_clouds("trace"))
    yield Line("trace ratio", "image trace over text trace", of_texts(against, "trace_ratio"))
    yield Line("power-law exponent", "of the covariance spectrum", of_clouds("power_law_exponent"))
    yield Line("effective rank", "exp of the entropy of the spectrum", of_clouds("effective_rank"))
    yield Line("condition number", "largest over smallest eigenvalue", of_clouds("condition_number"))
    yield Line("cosine JS divergence", densities, of_texts(against, "cosine_js_divergence"))
    for k in against["text"]["knn_mixing"]:
        shares = [*(against[name]["knn_mixing"][k] for name in texts), None]
        kept = [*(report["neighbours_kept"].get(name, {}).get(k) for name in texts), None]
        yield Line(f"kNN mixing, k = {k}", mixing, shares)
        yield Line(f"neighbours kept, k = {k}", "share of a text's nearest texts that stay its nearest", kept)
    yield Line(
        "linear probe", "accuracy at telling the sides apart; 0.5 is chance", of_texts(against, "probe_accuracy")
    )
    for field, name in PAIR_LINES.items() if "pairs" in report else ():
        yield Line(name, f"over {report['pairs']['text']['count']:,} pairs", of_texts(report["pairs"], field))
