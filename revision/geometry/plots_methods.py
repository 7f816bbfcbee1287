"""Figures that put the alignments side by side: their measures, and the parts of the gap of pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.geometry.style import GREY, IMAGE, colour

PART_COLOURS = {"beta": "#D55E00", "gamma": "#E69F00", "delta": "#56B4E9", "zeta": "#B4B4B4"}
PART_NAMES = {
    "beta": "‖β‖²  mean, in U",
    "gamma": "‖γ‖²  mean, in V",
    "delta": "E‖δ‖²  residual, in U",
    "zeta": "E‖ζ‖²  residual, in V",
}


@dataclass(frozen=True)
class _Panel:
    """One measure: its axis label, values by cloud, the value that images give, and what a bar behind a dot spans."""

    label: str
    values: dict[str, float]
    reference: float | None
    spans: dict[str, tuple[float, float]] | None = None
    logarithmic: bool = False


def draw_methods(report: dict[str, Any]) -> Figure:
    """One panel a measure, one dot an alignment; the dotted line is what the images reach among themselves.

    Args:
        report: the numbers of `report.compare`, in whose keys k is an integer or, read from JSON, a string.
    """
    panels = list(_panels(report))
    texts = list(report["against_image"])
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.8, rows * (0.75 + 0.16 * len(texts))), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for panel, axis in zip(panels, axes, strict=False):
        _draw_panel(axis, panel, texts)
    for axis in list(axes)[len(panels) :]:
        axis.set_visible(False)
    return figure


def _panels(report: dict[str, Any]) -> Iterable[_Panel]:
    against, halves = report["against_image"], report["image_halves"] or {}

    def of(field: str) -> dict[str, float]:
        """A measure against the images, by text cloud."""
        return {name: numbers[field] for name, numbers in against.items()}

    def own(field: str) -> tuple[dict[str, float], float]:
        """A measure of each cloud, and that of the images."""
        clouds = report["clouds"]
        return {name: clouds[name][field] for name in against}, clouds["image"][field]

    floor = report["centroid_gap_floor"]
    yield _Panel("centroid gap $G_\\mu$ (sphere radius 1)", of("centroid_gap"), floor, logarithmic=True)
    yield _Panel("trace of the covariance", *own("trace"))
    yield _Panel(
        "rel. covariance distance", of("covariance_distance_relative"), halves.get("covariance_distance_relative")
    )
    yield _Panel("Fréchet distance (sphere radius 1)", of("frechet_distance"), halves.get("frechet_distance"))
    yield _Panel("JS divergence of cosines (nats)", of("cosine_js_divergence"), halves.get("cosine_js_divergence"))
    yield _Panel("effective rank (dimensions)", *own("effective_rank"))
    yield _Panel("power-law exponent α", *own("power_law_exponent"))
    k = max(against["text"]["knn_mixing"], key=int)
    mixing = {name: 100 * numbers["knn_mixing"][k] for name, numbers in against.items()}
    sides = {
        name: (100 * numbers["knn_mixing_of_text"][k], 100 * numbers["knn_mixing_of_image"][k])
        for name, numbers in against.items()
    }
    yield _Panel(f"kNN mixing, k = {k} (%)", mixing, 100 * report["perfect_mixing"], sides)
    yield _Panel("linear-probe accuracy (%)", {name: 100 * share for name, share in of("probe_accuracy").items()}, 50)


def _draw_panel(axis: Axes, panel: _Panel, texts: list[str]) -> None:
    methods = texts[1:]
    for place, name in enumerate(texts):
        axis.plot(panel.values[name], place, "o", markersize=5, color=colour(name, methods), clip_on=False)
        if panel.spans is not None:
            axis.plot(panel.spans[name], (place, place), linewidth=2.2, color=colour(name, methods), alpha=0.35)
    if panel.reference is not None:
        axis.axvline(panel.reference, color=IMAGE, linewidth=0.9, linestyle=(0, (2, 1.5)), zorder=0)
    axis.set_yticks(range(len(texts)), texts)
    axis.set_ylim(len(texts) - 0.5, -0.5)
    axis.grid(axis="y", color="#e4e4e7", linewidth=0.6)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    if panel.logarithmic:
        axis.set_xscale("log")
    else:
        low, high = axis.get_xlim()
        axis.set_xlim(low if low < -0.05 * high else min(low, 0.0) if low < 0.4 * high else low, high)
    axis.set_xlabel(panel.label)


def draw_energies(pairs: dict[str, Any]) -> Figure:
    """Mean squared gap of a pair, split into its four parts, a bar for each alignment (ReVision v3, Sec. 3).

    Args:
        pairs: `pairs` of the report.
    """
    clouds = pairs["by_cloud"]
    figure = Figure(figsize=(4.8, 1.1 + 0.33 * len(clouds)), layout="constrained")
    axis = figure.subplots()
    for place, numbers in enumerate(clouds.values()):
        left = 0.0
        for part, value in numbers["decomposition"]["energy"].items():
            label = PART_NAMES[part] if place == 0 else None
            axis.barh(place, value, left=left, height=0.62, color=PART_COLOURS[part], label=label)
            left += value
        axis.annotate(
            f" cos {numbers['cosine']:.2f}", (left, place), va="center", fontsize=7, color=GREY, annotation_clip=False
        )  # fmt: skip
    axis.set_yticks(range(len(clouds)), list(clouds))
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"mean squared gap of a pair, E‖Δ‖² (U: {pairs['subspace']['rank']} dimensions)")
    figure.legend(loc="outside upper center", ncols=2, handlelength=1.2)
    return figure
