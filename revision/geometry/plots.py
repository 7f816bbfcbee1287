"""The figures of the geometry report, one function each, drawn for print: thin lines, one palette, small type.

Every figure takes the clouds of `report.compare` in its order: `image`, `text`, then the aligned clouds by method.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

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
STYLE = {
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
        with mpl.rc_context(STYLE):
            figure = draw(clouds)
            data = BytesIO()
            figure.savefig(data, format="png")
        paths.append(folder / f"{name}.png")
        write_whole(paths[-1], lambda file, data=data: file.write(data.getbuffer()))
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
    height = float(np.clip(3.0 * span[1] / span[0], 1.6, 3.6))
    figure = Figure(figsize=(0.5 + 3.0 * len(names), height + 0.7), layout="constrained")
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for name, panel in zip(names, panels, strict=True):
        for label in ("image", name):
            colour = _colour(label, clouds)
            panel.scatter(*points[label].T, s=5, alpha=0.35, linewidths=0, color=colour, label=label)
        for label in ("image", name):
            middle = (clouds[label].mean - centre) @ plane
            colour = _colour(label, clouds)
            panel.plot(*middle, marker="X", markersize=8, color=colour, markeredgecolor="white", zorder=3)
        gap = float(np.linalg.norm(clouds[name].mean - clouds["image"].mean))
        panel.set_title(f"{_title(name)}: centroid gap {gap:.2g}")
        panel.set_aspect("equal")
        panel.set_xlabel(f"PC 1 ({shares[0]:.0%} of the variance)")
        legend = panel.legend(loc="best", markerscale=2.5, handletextpad=0.2)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
    panels[0].set_ylabel(f"PC 2 ({shares[1]:.0%})")
    return figure


def draw_spectra(clouds: dict[str, Cloud]) -> Figure:
    """Eigenvalues of the covariances over their rank, with the power laws fitted to them."""
    figure, panel = _single(3.6)
    for name, cloud in clouds.items():
        values = cloud.eigenvalues
        slope, intercept = measures.power_law_line(values)
        ranks = np.arange(1, len(values) + 1)
        label = f"{name} (α = {-slope:.2f})"
        panel.loglog(ranks, values, color=_colour(name, clouds), linestyle=_dash(name), label=label)
    first, last = measures.power_law_range(clouds["image"].eigenvalues)
    panel.axvspan(first, last, color="#000000", alpha=0.05, linewidth=0)
    panel.annotate(
        "range of the fit", (np.sqrt(first * last), 0.98), xycoords=panel.get_xaxis_transform(), ha="center", va="top",
        color="#666666", fontsize=7,
    )  # fmt: skip
    panel.set_xlabel("rank k")
    panel.set_ylabel("eigenvalue λ$_k$ of the covariance")
    panel.legend(loc="lower left")
    return figure


def draw_cosines(clouds: dict[str, Cloud]) -> Figure:
    """Densities of the cosines of all pairs within each cloud, with their divergence from the image cloud's."""
    figure, panel = _single(3.2)
    for name, cloud in clouds.items():
        edges = np.linspace(-1, 1, len(cloud.density) + 1)
        divergence = measures.js_divergence(cloud.density, clouds["image"].density)
        label = name if name == "image" else f"{name} (JS = {divergence:.3g})"
        colour = _colour(name, clouds)
        panel.stairs(cloud.density, edges, color=colour, linestyle=_dash(name), label=label, linewidth=1.3)
        if name == "image":
            panel.stairs(cloud.density, edges, color=colour, fill=True, alpha=0.15)
    panel.set_xlim(*_support(clouds))
    panel.set_ylim(bottom=0)
    panel.set_xlabel("cosine of two rows of one cloud")
    panel.set_ylabel("density")
    panel.legend(loc="best")
    return figure


def draw_means(clouds: dict[str, Cloud]) -> Figure:
    """Means coordinate by coordinate: the profile, and how far each text cloud is from the image cloud."""
    order = np.argsort(clouds["image"].mean)
    figure = Figure(figsize=(6.5, 3.9), layout="constrained")
    profile, rest = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, 1])
    for name, cloud in reversed(clouds.items()):
        colour = _colour(name, clouds)
        profile.plot(cloud.mean[order], color=colour, linestyle=_dash(name), label=name, linewidth=1.0)
        if name != "image":
            rest.plot((cloud.mean - clouds["image"].mean)[order], color=colour, linewidth=0.8)
    rest.axhline(0, color=IMAGE, linewidth=1.0)
    profile.set_ylabel("mean")
    rest.set_ylabel("mean - image mean")
    rest.set_xlabel("coordinate, in the order of the image mean")
    profile.margins(x=0.01)
    handles, labels = profile.get_legend_handles_labels()
    profile.legend(handles[::-1], labels[::-1], loc="upper left", ncols=len(clouds))
    return figure


def _single(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, height), layout="constrained")
    return figure, figure.subplots()


def _colour(name: str, clouds: dict[str, Cloud]) -> str:
    fixed = {"image": IMAGE, "text": TEXT}
    methods = [other for other in clouds if other not in fixed]
    return fixed[name] if name in fixed else ALIGNED[methods.index(name) % len(ALIGNED)]


def _dash(name: str) -> str | tuple[int, tuple[float, ...]]:
    return {"image": "-", "text": "--"}.get(name, (0, (4, 1, 1, 1)))


def _title(name: str) -> str:
    return "before (text)" if name == "text" else f"after ({name})"


def _support(clouds: dict[str, Cloud]) -> tuple[float, float]:
    """Cosines between which every density has risen above a thousandth of its peak."""
    seen = np.any([cloud.density > cloud.density.max() / 1000 for cloud in clouds.values()], axis=0)
    edges = np.linspace(-1, 1, len(seen) + 1)
    where = np.flatnonzero(seen)
    return float(edges[where[0]]), float(edges[where[-1] + 1])
