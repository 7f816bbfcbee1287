"""The figure of a scaling sweep: scores against the number of records, and how many texts a pair is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from revision.evaluation.metrics import Metric
from revision.evaluation.scaling import Scaling
from revision.evaluation.style import COLOURS, FAINT, INK, TITLES, colour, plain, save
from revision.evaluation.sweeps import PAIRS


def draw_scaling(path: Path, found: Sequence[Scaling], *, title: str) -> None:
    """Scores against the number of records, texts and pairs, and below how many texts a pair is worth.

    found: of one model and track. A triangle is a bound: the curve of the texts ends before it reaches that score, or
    is beyond it from its first point on.
    """
    names = list(dict.fromkeys(one.metric.name for one in found))
    arms = [*dict.fromkeys(one.arm for one in found), PAIRS]
    figure = Figure(figsize=(3.6 * len(names) + 0.6, 5.8), layout="constrained", dpi=200)
    axes = figure.subplots(2, len(names), squeeze=False)
    for (top, bottom), name in zip(axes.T, names, strict=True):
        members = [one for one in found if one.metric.name == name]
        _log_axis(top, np.union1d(members[0].texts, members[0].pairs))
        _log_axis(bottom, members[0].pairs)
        top.set_title(TITLES[name], fontsize=9, color=INK)
        for one in members:
            _scaling_curve(top, one.texts, one.of_texts, one.text_draws, one.metric, colour(one.arm, arms), one.arm)
            _equivalences(bottom, one, colour(one.arm, arms))
        last = members[-1]
        _scaling_curve(top, last.pairs, last.of_pairs, last.pair_draws, last.metric, COLOURS[PAIRS], PAIRS)
        top.set_xlabel("records", fontsize=9)
        bottom.set_xlabel("pairs", fontsize=9)
        bottom.axhline(1, color=FAINT, linewidth=1, zorder=1)
        bottom.set_yscale("log")
        bottom.yaxis.set_major_formatter("{x:g}")
        bottom.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        bottom.yaxis.set_minor_formatter("{x:g}")
    axes[1, 0].set_ylabel("texts per pair", fontsize=9)
    handles = {label: handle for handle, label in zip(*axes[0, 0].get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=9, frameon=False,
        title=title, title_fontproperties={"weight": "bold", "size": 10},
    )  # fmt: skip
    save(figure, path)


def _log_axis(axis: Axes, numbers: np.ndarray) -> None:
    """A logarithmic horizontal axis that is labelled where something was measured."""
    plain(axis)
    axis.set_xscale("log")
    axis.set_xticks(numbers, [f"{number:,}" for number in numbers], rotation=45)
    axis.minorticks_off()
    axis.tick_params(which="both", labelsize=7)


def _scaling_curve(
    axis: Axes, records: np.ndarray, values: np.ndarray, draws: np.ndarray, metric: Metric, ink: str, arm: str
) -> None:
    scale = metric.factor
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    axis.errorbar(
        records, scale * values, yerr=scale * np.abs([low - values, high - values]), color=ink, marker="o",
        markersize=4, linewidth=1.4, elinewidth=1, label="pairs" if arm == PAIRS else f"texts, {arm.replace('_', ' ')}",
    )  # fmt: skip


def _equivalences(axis: Axes, one: Scaling, ink: str) -> None:
    for found in one.equivalences():
        ends = (one.texts[0] / found.pairs, one.texts[-1] / found.pairs)
        value, low, high = (float(np.clip(part / found.pairs, *ends)) for part in (found.texts, found.low, found.high))
        marker = "v" if found.texts < one.texts[0] else "^" if found.texts > one.texts[-1] else "o"
        axis.vlines(found.pairs, low, high, color=ink, linewidth=1.4, zorder=2)
        axis.plot(found.pairs, value, marker, color=ink, markersize=5, zorder=3)
