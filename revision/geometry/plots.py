"""The figures of the geometry report that show clouds, one function each.

Every figure takes the clouds of `report.compare` in their order: `image`, `text`, then the aligned clouds by method.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.geometry import measures
from revision.geometry.frame_plot import draw_frame
from revision.geometry.plots_fit import draw_size_curve, draw_transfer
from revision.geometry.plots_methods import draw_energies, draw_methods
from revision.geometry.report import Cloud
from revision.geometry.style import GREY, IMAGE, STYLE, colour, dash, save

MOST_COLUMNS = 3  # of panels beside each other
MOST_POINTS = 2000  # a side on a scatter plot: more only hide each other


def draw_all(folder: Path, clouds: dict[str, Cloud], report: dict[str, Any]) -> list[Path]:
    """Draw every figure that the report has numbers for into a folder.

    Args:
        folder: where the PNG files go.
        clouds: of `report.compare`.
        report: what `revision gap` writes to `report.json`.

    Returns:
        The PNG files, in the order in which a report shows them.
    """
    figures: dict[str, Callable[[], Figure]] = {
        "pca": lambda: draw_pca(clouds),
        "methods": lambda: draw_methods(report),
        "cosines": lambda: draw_cosines(clouds, report),
        "spectra": lambda: draw_spectra(clouds),
        "means": lambda: draw_means(clouds),
    }
    if "pairs" in report:
        figures["pairs"] = lambda: draw_energies(report["pairs"])
    if "sample_size" in report:
        figures["sample_size"] = lambda: draw_size_curve(report["sample_size"])
    if "domain_transfer" in report:
        figures["domain_transfer"] = lambda: draw_transfer(report["domain_transfer"])
    if "frame" in report:
        figures["frame"] = lambda: draw_frame(report["frame"]["lines"])
    paths = []
    for name, draw in figures.items():
        with mpl.rc_context(STYLE):
            paths.append(save(draw(), folder / f"{name}.png"))
    return paths


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows, at equal distances: those of a sample stand in the order of the store."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)]


def draw_pca(clouds: dict[str, Cloud]) -> Figure:
    """Image cloud and, panel by panel, each text cloud, in the plane that shows most of image and raw text together.

    The plane is the same in all panels: the first two principal components of both sides, which contain the gap where
    there is one.
    """
    image, text = clouds["image"].rows, clouds["text"].rows
    both = np.concatenate([image, text])
    centre = both.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(measures.covariance(both))
    plane, shares = vectors[:, :-3:-1], values[:-3:-1] / values.sum()
    points = {name: (_spread(cloud.rows, MOST_POINTS) - centre) @ plane for name, cloud in clouds.items()}
    low = np.min([part.min(axis=0) for part in points.values()], axis=0)
    span = np.max([part.max(axis=0) for part in points.values()], axis=0) - low
    names, methods = [name for name in clouds if name != "image"], _methods(clouds)
    columns = min(len(names), MOST_COLUMNS if len(names) != MOST_COLUMNS + 1 else 2)  # four are two by two
    rows = -(-len(names) // columns)
    width, height = np.maximum(span * min(3.0 / span[0], 3.4 / span[1]), 1.7) * (1 if columns < 3 else 0.8)
    figure = Figure(figsize=(0.5 + (width + 0.2) * columns, (height + 0.3) * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for name, panel in zip(names, panels.flat, strict=False):
        pair = ("image", name)
        shown = np.concatenate([points[label] for label in pair])
        colours = np.repeat([colour(label, methods) for label in pair], [len(points[label]) for label in pair])
        mixed = np.random.default_rng(0).permutation(len(shown))  # so that neither side hides the other
        panel.scatter(*shown[mixed].T, s=5, alpha=0.5, linewidths=0, color=colours[mixed], rasterized=True)
        for label in pair:
            middle = (clouds[label].mean - centre) @ plane
            shade = colour(label, methods)
            panel.plot(*middle, "X", markersize=8, color=shade, markeredgecolor="white", label=label)
        panel.set_title("before: raw text" if name == "text" else f"after: {name}")
        panel.set_aspect("equal")
        panel.legend(loc="best", handletextpad=0.2, title="means", alignment="left")
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel(f"PC 1 ({shares[0]:.0%} of the variance)")
    for panel in panels[:, 0]:
        panel.set_ylabel(f"PC 2 ({shares[1]:.0%})")
    return figure


def draw_spectra(clouds: dict[str, Cloud]) -> Figure:
    """Eigenvalues of the covariances over their rank, with the exponents of the power laws fitted to them."""
    figure, panel = _single(3.6)
    methods = _methods(clouds)
    for name, cloud in clouds.items():
        values, shade = cloud.eigenvalues, colour(name, methods)
        label = f"{name} (α = {measures.power_law_exponent(values):.2f})"
        panel.loglog(np.arange(1, len(values) + 1), values, color=shade, linestyle=dash(name, methods), label=label)
    first, last = measures.power_law_range(clouds["image"].eigenvalues)
    panel.axvspan(first, last, color="#000000", alpha=0.05, linewidth=0)
    panel.annotate(
        "range of the fit", (np.sqrt(first * last), 0.98), xycoords=panel.get_xaxis_transform(), ha="center", va="top",
        color=GREY, fontsize=7,
    )  # fmt: skip
    panel.set_xlim(1, 1.1 * max(len(cloud.eigenvalues) for cloud in clouds.values()))
    panel.set_xlabel("rank k")
    panel.set_ylabel("eigenvalue λ$_k$ of the covariance")
    panel.legend(loc="lower left")
    return figure


def draw_cosines(clouds: dict[str, Cloud], report: dict[str, Any]) -> Figure:
    """Densities of the cosines of all pairs within each cloud, with the report's divergences from the images'."""
    figure, panel = _single(3.2)
    methods = _methods(clouds)
    for name, cloud in clouds.items():
        centres = cloud.bin_edges[:-1] + 1 / len(cloud.density)
        label = name
        if name != "image":
            to = " to mapped images" if name in report["moved_images"] else ""
            label += f" (JS = {report['against_image'][name]['cosine_js_divergence']:.3g}{to})"
        shade = colour(name, methods)
        panel.plot(centres, cloud.density, color=shade, linestyle=dash(name, methods), label=label)
        if name == "image":
            panel.fill_between(centres, cloud.density, color=shade, alpha=0.15, linewidth=0)
    panel.set_xlim(*_support(clouds))
    panel.set_ylim(bottom=0)
    panel.set_xlabel("cosine of two rows of one cloud")
    panel.set_ylabel("density")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def draw_means(clouds: dict[str, Cloud]) -> Figure:
    """Means coordinate by coordinate: each text cloud's against the image cloud's, and how far apart they are."""
    image, methods = clouds["image"].mean, _methods(clouds)
    figure = Figure(figsize=(6.5, 3.1), layout="constrained")
    panel, rest = figure.subplots(1, 2)
    reach = 1.05 * max(float(np.abs(cloud.mean).max()) for cloud in clouds.values())
    panel.plot([-reach, reach], [-reach, reach], color=IMAGE, linewidth=0.8, zorder=0)
    for name, cloud in clouds.items():
        if name != "image":
            shade = colour(name, methods)
            panel.plot(image, cloud.mean, ".", markersize=4, markeredgewidth=0, alpha=0.7, color=shade, label=name)
            apart = np.sort(np.abs(cloud.mean - image))[::-1]
            rest.semilogy(np.arange(1, len(apart) + 1), apart, color=shade, linestyle=dash(name, methods), label=name)
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    panel.set_xlabel("image mean of a coordinate")
    panel.set_ylabel("text mean of the same coordinate")
    panel.legend(loc="upper left", markerscale=2, handletextpad=0.2)
    rest.set_xlabel("coordinates, furthest apart first")
    rest.set_ylabel("|text mean − image mean|")
    rest.margins(x=0.02)
    rest.legend(loc="best")
    return figure


def _single(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, height), layout="constrained")
    return figure, figure.subplots()


def _methods(clouds: dict[str, Cloud]) -> list[str]:
    return [name for name in clouds if name not in ("image", "text")]


def _support(clouds: dict[str, Cloud]) -> tuple[float, float]:
    """Cosines between which every density has risen above a thousandth of its peak."""
    seen = np.any([cloud.density > cloud.density.max() / 1000 for cloud in clouds.values()], axis=0)
    edges, where = clouds["image"].bin_edges, np.flatnonzero(seen)
    return float(edges[where[0]]), float(edges[where[-1] + 1])
