"""The figures of the geometry report, one function each, drawn for print: thin lines, one palette, small type.

Every figure takes the clouds of `report.compare` in their order: `image`, `text`, then the aligned clouds by method.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.embeddings.layout import write_whole
from revision.geometry import measures
from revision.geometry.report import Cloud

# Okabe and Ito's palette, which the colour-blind tell apart too; dashes do the same in a black-and-white print.
IMAGE, TEXT = "#0072B2", "#D55E00"
ALIGNED = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#666666")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "savefig.dpi": 220,
}
MOST_POINTS = 2000  # a side on a scatter plot: more only hide each other


def draw_all(folder: Path, clouds: dict[str, Cloud]) -> list[Path]:
    """Draw every figure into a folder.

    Returns:
        The PNG files, in the order in which a report shows them.
    """
    figures = {"pca": draw_pca, "cosines": draw_cosines, "spectra": draw_spectra, "means": draw_means}
    paths = []
    for name, draw in figures.items():
        data = BytesIO()
        with mpl.rc_context(STYLE):
            draw(clouds).savefig(data, format="png")
        paths.append(folder / f"{name}.png")
        _write(paths[-1], data.getvalue())
    return paths


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
    points = {name: (cloud.rows[:MOST_POINTS] - centre) @ plane for name, cloud in clouds.items()}
    low = np.min([part.min(axis=0) for part in points.values()], axis=0)
    span = np.max([part.max(axis=0) for part in points.values()], axis=0) - low
    names = [name for name in clouds if name != "image"]
    width, height = np.maximum(span * min(3.0 / span[0], 3.4 / span[1]), 1.7)
    figure = Figure(figsize=(0.5 + (width + 0.2) * len(names), height + 0.8), layout="constrained")
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for name, panel in zip(names, panels, strict=True):
        pair = ("image", name)
        shown = np.concatenate([points[label] for label in pair])
        colours = np.repeat([_colour(label, clouds) for label in pair], [len(points[label]) for label in pair])
        mixed = np.random.default_rng(0).permutation(len(shown))  # so that neither side hides the other
        panel.scatter(*shown[mixed].T, s=5, alpha=0.5, linewidths=0, color=colours[mixed])
        for label in pair:
            middle = (clouds[label].mean - centre) @ plane
            panel.plot(*middle, "X", markersize=8, color=_colour(label, clouds), markeredgecolor="white", label=label)
        panel.set_title("before: raw text" if name == "text" else f"after: {name}")
        panel.set_aspect("equal")
        panel.set_xlabel(f"PC 1 ({shares[0]:.0%} of the variance)")
        panel.legend(loc="best", handletextpad=0.2, title="means", alignment="left")
    panels[0].set_ylabel(f"PC 2 ({shares[1]:.0%})")
    return figure


def draw_spectra(clouds: dict[str, Cloud]) -> Figure:
    """Eigenvalues of the covariances over their rank, with the exponents of the power laws fitted to them."""
    figure, panel = _single(3.6)
    for name, cloud in clouds.items():
        values, colour = cloud.eigenvalues, _colour(name, clouds)
        label = f"{name} (α = {measures.power_law_exponent(values):.2f})"
        panel.loglog(np.arange(1, len(values) + 1), values, color=colour, linestyle=_dash(name), label=label)
    first, last = measures.power_law_range(clouds["image"].eigenvalues)
    panel.axvspan(first, last, color="#000000", alpha=0.05, linewidth=0)
    panel.annotate(
        "range of the fit", (np.sqrt(first * last), 0.98), xycoords=panel.get_xaxis_transform(), ha="center", va="top",
        color="#666666", fontsize=7,
    )  # fmt: skip
    panel.set_xlim(1, 1.1 * max(len(cloud.eigenvalues) for cloud in clouds.values()))
    panel.set_xlabel("rank k")
    panel.set_ylabel("eigenvalue λ$_k$ of the covariance")
    panel.legend(loc="lower left")
    return figure


def draw_cosines(clouds: dict[str, Cloud]) -> Figure:
    """Densities of the cosines of all pairs within each cloud, with their divergence from the image cloud's."""
    figure, panel = _single(3.2)
    for name, cloud in clouds.items():
        centres = _bin_edges(cloud)[:-1] + 1 / len(cloud.density)
        divergence = measures.js_divergence(cloud.density, clouds["image"].density)
        label = name if name == "image" else f"{name} (JS = {divergence:.3g})"
        colour = _colour(name, clouds)
        panel.plot(centres, cloud.density, color=colour, linestyle=_dash(name), label=label)
        if name == "image":
            panel.fill_between(centres, cloud.density, color=colour, alpha=0.15, linewidth=0)
    panel.set_xlim(*_support(clouds))
    panel.set_ylim(bottom=0)
    panel.set_xlabel("cosine of two rows of one cloud")
    panel.set_ylabel("density")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def draw_means(clouds: dict[str, Cloud]) -> Figure:
    """Means coordinate by coordinate: each text cloud's against the image cloud's, and how far apart they are."""
    image = clouds["image"].mean
    figure = Figure(figsize=(6.5, 3.1), layout="constrained")
    panel, rest = figure.subplots(1, 2)
    reach = 1.05 * max(float(np.abs(cloud.mean).max()) for cloud in clouds.values())
    panel.plot([-reach, reach], [-reach, reach], color=IMAGE, linewidth=0.8, zorder=0)
    for name, cloud in clouds.items():
        if name != "image":
            colour = _colour(name, clouds)
            panel.plot(image, cloud.mean, ".", markersize=4, markeredgewidth=0, alpha=0.7, color=colour, label=name)
            apart = np.sort(np.abs(cloud.mean - image))[::-1]
            rest.semilogy(np.arange(1, len(apart) + 1), apart, color=colour, linestyle=_dash(name), label=name)
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    panel.set_xlabel("image mean of a coordinate")
    panel.set_ylabel("text mean of the same coordinate")
    panel.legend(loc="upper left", markerscale=2, handletextpad=0.2)
    rest.set_xlabel("coordinates, furthest apart first")
    rest.set_ylabel("|text mean − image mean|")
    rest.margins(x=0.02)
    rest.legend(loc="best")
    return figure


def _write(path: Path, data: bytes) -> None:
    write_whole(path, lambda file: file.write(data))


def _single(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, height), layout="constrained")
    return figure, figure.subplots()


def _colour(name: str, clouds: dict[str, Cloud]) -> str:
    fixed = {"image": IMAGE, "text": TEXT}
    methods = [other for other in clouds if other not in fixed]
    return fixed[name] if name in fixed else ALIGNED[methods.index(name) % len(ALIGNED)]


def _dash(name: str) -> str | tuple[int, tuple[float, ...]]:
    return {"image": "-", "text": "--"}.get(name, (0, (4, 1, 1, 1)))


def _bin_edges(cloud: Cloud) -> np.ndarray:
    return np.linspace(-1, 1, len(cloud.density) + 1)


def _support(clouds: dict[str, Cloud]) -> tuple[float, float]:
    """Cosines between which every density has risen above a thousandth of its peak."""
    seen = np.any([cloud.density > cloud.density.max() / 1000 for cloud in clouds.values()], axis=0)
    edges, where = _bin_edges(clouds["image"]), np.flatnonzero(seen)
    return float(edges[where[0]]), float(edges[where[-1] + 1])
