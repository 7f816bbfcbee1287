"""Figures of `held_out`: the gap over the number of rows that an alignment was fitted on, and over domains."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from revision.geometry.style import GREY, TEXT, colour, dash

AXES = {
    "centroid_gap": "centroid gap $G_\\mu$ (sphere radius 1)",
    "frechet_distance": "Fréchet distance (sphere radius 1)",
}
MARKERS = "osD^vP"


def draw_size_curve(curve: dict[str, Any]) -> Figure:
    """Gap on held-out rows over the number of rows fitted on; bands reach from the best trial to the worst."""
    figure = Figure(figsize=(6.8, 3.1), layout="constrained")
    for axis, (measure, label) in zip(figure.subplots(1, 2), AXES.items(), strict=True):
        _draw_curves(axis, curve, measure)
        axis.set_ylabel(label)
        axis.set_xlabel("rows a side that the fit has, N")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)))
    return figure


def _draw_curves(axis: Axes, curve: dict[str, Any], measure: str) -> None:
    sizes, methods = np.array(curve["sizes"]), list(curve["methods"])
    axis.axhline(curve["raw"][measure], color=TEXT, linestyle="--", linewidth=1.0, label="text, not aligned")
    if measure == "centroid_gap":
        axis.plot(sizes, curve["expected"], color=GREY, linewidth=0.9, linestyle=(0, (1, 1.5)))
    axis.plot([], [], color=GREY, linewidth=0.9, linestyle=(0, (1, 1.5)), label="sampling alone")
    for place, name in enumerate(methods):
        trials = np.array(curve["methods"][name][measure], dtype=float)  # [size, trial]; a refused fit is NaN
        there = ~np.isnan(trials).any(axis=1)
        x, y, shade = sizes[there], trials[there], colour(name, methods)
        axis.fill_between(x, y.min(axis=1), y.max(axis=1), color=shade, alpha=0.18, linewidth=0)
        # Markers shrink from method to method, since some coincide: c3 without its noise is the mean shift.
        mark: dict[str, Any] = {"marker": MARKERS[place % len(MARKERS)], "markersize": max(2.5, 6 - 1.5 * place)}
        axis.plot(x, y.mean(axis=1), color=shade, linestyle=dash(name, methods), label=name, **mark)
    axis.set_xscale("log")
    if measure == "centroid_gap":
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_ylim(bottom=0)


def draw_transfer(transfer: dict[str, Any]) -> Figure:
    """Centroid gap for each pair of domains, a panel an alignment; the first row is the gap without one."""
    names, methods = transfer["domains"], list(transfer["methods"])
    tables = {
        name: np.array(
            [[transfer["raw"][to]["centroid_gap"] for to in names], *values["centroid_gap"]["mean"]], dtype=float
        )  # a refused fit is NaN
        for name, values in transfer["methods"].items()
    }
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    cell = 0.62  # inches; the labels beside and below the cells grow with their longest word
    words = 0.075 * max(map(len, [*names, "(not aligned)"]))
    width, height = cell * len(names), cell * (len(names) + 1)
    figure = Figure(
        figsize=(words + 0.4 + columns * (width + 0.25), rows * (height + 0.3) + 0.35 * words + 0.75),
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    both = np.concatenate([table.ravel() for table in tables.values()])
    low, high = np.log(max(np.nanmin(both), 1e-12)), np.log(np.nanmax(both))
    for name, axis in zip(methods, axes.flat, strict=False):
        table = tables[name]
        axis.imshow(np.log(table.clip(1e-12)), cmap="YlOrBr", vmin=low, vmax=high + (high - low) * 0.35)
        for (row, column), value in np.ndenumerate(table):
            axis.annotate(
                "refused" if np.isnan(value) else f"{value:.3f}", (column, row), ha="center", va="center", fontsize=8
            )
        axis.axhline(0.5, color="white", linewidth=3)
        axis.set_title(name)
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names) + 1), ["(not aligned)", *names])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    for axis in axes.flat[len(methods) :]:
        axis.set_visible(False)
    figure.supxlabel("measured on", fontsize=8)
    figure.supylabel("fitted on", fontsize=8)
    figure.suptitle("centroid gap $G_\\mu$ on held-out rows (sphere radius 1)", fontsize=8.5)
    return figure
