"""Figures of a sweep: the alignments side by side, and the map of what alignment is worth as other settings move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.evaluation.metrics import PICTURE_METRICS, QUESTION_METRICS, Metric
from revision.evaluation.style import FAINT, INK, TITLES, colour, plain, save
from revision.evaluation.sweeps import (
    Group,
    Job,
    arm_order,
    base_settings,
    by_model,
    difference,
    estimate,
    estimate_mean,
    group_jobs,
    is_number,
    seed_values,
    suite_of,
    swept_fields,
    tracks,
    value_order,
)

_METRICS = {metric.name: metric for metric in (*PICTURE_METRICS, *QUESTION_METRICS)}
_LOG_FROM = 8  # ratio of largest to smallest value from which an axis is logarithmic

# metric, and the reference lines drawn with it (metric, label, dashes)
_PANELS: dict[str, list[tuple[str, str, str]]] = {
    "naming_r5": [("naming_r5_encoder", "encoder", "--"), ("naming_r5_chance", "chance", ":")],
    "margin": [],
    "token_nll": [],
    "exact": [("constant", "most frequent answer", ":")],
}


def draw_table(path: Path, jobs: Sequence[Job]) -> None:
    """One row of panels for each model and track: naming, margin, NLL and, where asked, questions, by alignment.

    Benchmarks have a figure of their own (`draw_benchmarks`); where there is nothing else, nothing is drawn. Only jobs
    at the base point of a sweep are shown (the commonest value of every swept setting). A large dot is the mean over
    seeds with its 95 % interval over pictures and seeds, the small ones are the single seeds.
    """
    strips = []
    for model, members in by_model(jobs).items():
        groups, suite = base_groups(members), suite_of(members)
        strips += [(model, track, groups) for track in tracks(members) if track not in suite]
    if not strips:
        return
    panels = [name for name in _PANELS if any(_shown(groups, name, track) for _, track, groups in strips)]
    figure = Figure(figsize=(3.6 * len(panels), 2.9 * len(strips) + 0.2), layout="constrained", dpi=200)
    axes = figure.subplots(len(strips), len(panels), squeeze=False)
    for row, (model, track, groups) in zip(axes, strips, strict=True):
        row[0].set_ylabel(f"{model}\n{track} concepts", fontsize=9, fontweight="bold", color=INK)
        for axis, name in zip(row, panels, strict=True):
            if _shown(groups, name, track):
                _alignment_panel(axis, groups, name, _PANELS[name], track)
            else:
                axis.axis("off")
    for axis, name in zip(axes[0], panels, strict=True):
        axis.set_title(TITLES[name], fontsize=9, color=INK)
    save(figure, path)


def draw_map(path: Path, jobs: Sequence[Job], *, ours: str, track: str) -> None:
    """What alignment is worth: a column for each swept setting, along which all others stay at their base.

    jobs: of one model. The first row shows naming R@5 of every alignment, the others `ours` minus each alignment,
    paired, with 95 % intervals: above zero `ours` is better in naming and margin, below zero in NLL. Settings that are
    no numbers stand side by side in the order of the alphabet.
    Raises ValueError when nothing was swept but alignment and seed.
    """
    fields = swept_fields(jobs)
    if not fields:
        raise ValueError(f"nothing but alignment and seed was swept for {jobs[0].model}; a map needs a swept setting")
    base = base_settings(jobs, fields)
    groups = group_jobs(jobs, fields)
    rows = [("naming_r5", False), ("naming_r5", True), ("margin", True), ("token_nll", True)]
    figure = Figure(figsize=(3.6 * len(fields) + 0.6, 2.3 * len(rows) + 0.6), layout="constrained", dpi=200)
    axes = figure.subplots(len(rows), len(fields), squeeze=False, sharex="col", sharey="row")
    for column, field in enumerate(fields):
        line = [
            group for group in groups if all(value == base[name] for name, value in group.settings if name != field)
        ]
        for row, (name, is_difference) in enumerate(rows):
            axis = axes[row, column]
            _map_panel(axis, line, field, _METRICS[name], track, ours if is_difference else None)
            if column == 0:
                axis.set_ylabel(f"{ours} $-$ other\n{TITLES[name]}" if is_difference else TITLES[name], fontsize=8)
        axes[-1, column].set_xlabel(field, fontsize=9)
    arms = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        arms.values(), arms.keys(), loc="outside upper center", ncols=len(arms), fontsize=9, frameon=False,
        title=f"{jobs[0].model}, {track} concepts", title_fontproperties={"weight": "bold", "size": 10},
    )  # fmt: skip
    save(figure, path)


def draw_benchmarks(path: Path, groups: Sequence[Group], suite: Sequence[str]) -> None:
    """A line for each benchmark and their mean, a dot with its 95 % interval for each group: accuracy in percent."""
    metric, arms = _METRICS["accuracy"], [group.arm for group in groups]
    means = [estimate_mean(group, metric, tracks=suite) for group in groups]
    rows = [[estimate(group, metric, row="question", track=track) for group in groups] for track in suite]
    figure = Figure(figsize=(7.2, (0.3 + 0.13 * len(groups)) * (len(suite) + 1) + 1), layout="constrained", dpi=200)
    axis = figure.subplots()
    plain(axis, grid="x")
    for place, found in enumerate([means, *rows]):
        for number, (group, one) in enumerate(zip(groups, found, strict=True)):
            if one is None:
                continue
            value, low, high = (100 * part for part in (one.value, one.low, one.high))
            at = -place - 0.7 * ((number + 0.5) / len(groups) - 0.5)
            axis.hlines(at, low, high, color=colour(group.arm, arms), linewidth=1.4)
            axis.plot(value, at, "o", color=colour(group.arm, arms), markersize=4)
    for group in groups:
        label = " ".join([group.arm, *(str(value) for _, value in group.settings)])
        axis.plot([], [], "o", color=colour(group.arm, arms), markersize=4, label=label)
    axis.set_yticks([-place for place in range(len(suite) + 1)], ["mean", *suite])
    axis.set_xlabel("accuracy (%)", fontsize=9)
    axis.set_xlim(left=0)
    figure.legend(loc="outside upper center", ncols=min(4, len(groups)), fontsize=8, frameon=False)
    save(figure, path)


def base_groups(jobs: Sequence[Job]) -> list[Group]:
    """Groups of one model's jobs at the base point of their sweep."""
    fields = swept_fields(jobs)
    base = base_settings(jobs, fields)
    return [group for group in group_jobs(jobs, fields) if dict(group.settings) == base]


def _row_of(name: str) -> str:
    return "question" if _METRICS[name] in QUESTION_METRICS else "picture"


def _shown(groups: Sequence[Group], name: str, track: str) -> bool:
    return any(seed_values(group, _METRICS[name], row=_row_of(name), track=track) for group in groups)


def _alignment_panel(
    axis: Axes, groups: Sequence[Group], name: str, references: Sequence[tuple[str, str, str]], track: str
) -> None:
    metric, row, scale = _METRICS[name], _row_of(name), _METRICS[name].factor
    arms = [group.arm for group in groups]
    plain(axis)
    for reference, label, dashes in references:
        level = estimate(groups[0], _METRICS[reference], row=row, track=track)
        if level is not None:
            axis.axhline(scale * level.value, color=FAINT, linestyle=dashes, linewidth=1, zorder=1)
            axis.annotate(
                label.replace(" ", "\n"), (1, scale * level.value), xycoords=axis.get_yaxis_transform(), xytext=(3, 0),
                textcoords="offset points", ha="left", va="center", fontsize=7, color=FAINT,
            )  # fmt: skip
    for place, group in enumerate(groups):
        found = estimate(group, metric, row=row, track=track)
        if found is None:
            continue
        ink = colour(group.arm, arms)
        value, low, high = scale * found.value, scale * found.low, scale * found.high
        axis.vlines(place, low, high, color=ink, linewidth=1.8, zorder=3)
        axis.plot(place, value, "o", color=ink, markersize=6.5, markeredgecolor="white", markeredgewidth=0.8, zorder=4)
        seeds = scale * np.array(seed_values(group, metric, row=row, track=track))
        if len(seeds) > 1:
            axis.plot(np.full(len(seeds), place + 0.2), seeds, "o", color=ink, markersize=2.8, alpha=0.55, zorder=3)
    axis.set_xticks(range(len(groups)), [arm.replace("_", " ") for arm in arms])
    axis.set_xlim(-0.5, len(groups) - 0.35)
    axis.margins(y=0.12)
    if metric.percent:
        axis.set_ylim(bottom=0)


def _map_panel(axis: Axes, line: Sequence[Group], field: str, metric: Metric, track: str, ours: str | None) -> None:
    """Levels of every arm along one setting, or with `ours` the paired differences to it."""
    arms = sorted({group.arm for group in line}, key=arm_order)
    values = sorted({dict(group.settings)[field] for group in line}, key=value_order)
    at = _ticks(axis, values)
    lookup = {(group.arm, dict(group.settings)[field]): group for group in line}
    if ours is not None:
        axis.axhline(0, color=FAINT, linewidth=1, zorder=1)
    compared = [arm for arm in arms if arm != ours]
    for number, arm in enumerate(compared):
        points = []
        for value in values:
            theirs, mine = lookup.get((arm, value)), lookup.get((ours or arm, value))
            if theirs is None or mine is None:
                continue
            found = (
                estimate(theirs, metric, row="picture", track=track)
                if ours is None
                else difference(mine, theirs, metric, row="picture", track=track)
            )
            if found is not None:
                points.append((at[value], found.value, found.low, found.high))
        if points:
            places, level, low, high = np.array(points).T
            scale = metric.factor
            # Side by side within the width of a marker, so that intervals do not hide one another.
            places = places + 0.012 * (number - (len(compared) - 1) / 2) * (np.ptp(list(at.values())) or 1.0)
            axis.errorbar(
                places, scale * level, yerr=scale * np.abs([low - level, high - level]), color=colour(arm, arms),
                marker="o", markersize=4, linewidth=1.4, elinewidth=1, label=arm.replace("_", " "),
            )  # fmt: skip


def _ticks(axis: Axes, values: Sequence[Any]) -> dict[Any, float]:
    """Labels the values of a setting on the horizontal axis; returns the place of each.

    Numbers stand where they belong, by their logarithm where they span much; other values stand side by side.
    """
    plain(axis)
    if not all(is_number(value) for value in values):
        at = {value: float(place) for place, value in enumerate(values)}
    elif min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
        at = {value: float(np.log(value)) for value in values}
    else:
        at = {value: float(value) for value in values}
    axis.set_xticks(list(at.values()), [f"{value:g}" if is_number(value) else str(value) for value in values])
    return at
