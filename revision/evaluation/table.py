"""The tables of a sweep: every number as CSV, means over seeds and paired differences as Markdown, and the figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from revision.evaluation.figures import draw_benchmarks, draw_map, draw_table
from revision.evaluation.metrics import ALL_KINDS, PICTURE_METRICS, QUESTION_METRICS, Metric
from revision.evaluation.report import cell, markdown
from revision.evaluation.scaling import scalings, section
from revision.evaluation.scaling_figure import draw_scaling
from revision.evaluation.statistics import Estimate
from revision.evaluation.sweeps import (
    Group,
    Job,
    by_model,
    difference,
    difference_mean,
    estimate,
    estimate_mean,
    group_jobs,
    group_seeds,
    read_jobs,
    suite_of,
    swept_fields,
    tracks,
)
from revision.files import write_text


@dataclass(frozen=True)
class Arms:
    """What the arms of a table are, and the one that the others are compared with."""

    title: str = "alignment"
    ours: str = "realign"


_PICTURES = {metric.name: metric for metric in PICTURE_METRICS}
_COLUMNS = ["token_nll", "margin", "token_nll_blind", "naming_r1", "naming_r5", "naming_r5_likelihood"]
_REFERENCES = {
    "encoder, cosine": ("naming_r1_encoder", "naming_r5_encoder"),
    "chance": ("naming_r1_chance", "naming_r5_chance"),
}
_COMPARED = ["token_nll", "margin", "naming_r1", "naming_r5"]


def collect(folder: Path) -> None:
    """Writes table.csv, table.md, table.png and, where a setting beside the alignment was swept, map-MODEL-TRACK.png.

    Where numbers of texts and of pairs were swept, scaling-MODEL-TRACK.png too, and of benchmarks benchmarks-MODEL.png.

    folder: of a sweep; every `evaluate/<model>/scores.json` below it is a row. Raises ValueError when there is none.
    """
    jobs, arms = read_jobs(folder), Arms()
    write_text(folder / "table.csv", csv_table(jobs, folder))
    write_text(folder / "table.md", markdown_tables(jobs, arms, title=folder.name))
    draw_table(folder / "table.png", jobs)
    _draw_suites(folder, jobs)
    for model, members in by_model(jobs).items():
        suite = suite_of(members)
        for track in tracks(members) if swept_fields(members) else []:
            if track in suite:
                continue
            draw_map(folder / f"map-{model}-{track}.png", members, ours=arms.ours, track=track)
            if found := scalings(members, track):
                draw_scaling(folder / f"scaling-{model}-{track}.png", found, title=f"{model}, {track} concepts")


def collect_experiments(runs: Sequence[Path], root: Path, out: Path) -> None:
    """One table over runs of several experiments, such as the rows of a table of the paper.

    Writes table.csv, table.md and, of benchmarks, benchmarks-MODEL.png into `out`.
    runs: folders below `root`, each with an evaluation of its own; what is not the first is compared with it. Runs that
    differ in their seed alone are one arm. Raises ValueError when one has no scores, or other pictures or questions
    than another.
    """
    own = [job for run in runs for job in read_jobs(run) if job.run == run]
    jobs = [replace(job, arm=_experiment(job.run, root), settings={}) for job in own]
    write_text(out / "table.csv", csv_table(jobs, root))
    write_text(out / "table.md", markdown_tables(jobs, Arms("experiment", jobs[0].arm), title=out.name))
    _draw_suites(out, jobs)


def _experiment(run: Path, root: Path) -> str:
    """A run's name without its seed."""
    words = [word for part in run.relative_to(root).parts for word in part.split(",")]
    return " ".join(word for word in words if not word.startswith("seed="))


def _draw_suites(folder: Path, jobs: Sequence[Job]) -> None:
    for model, members in by_model(jobs).items():
        if suite := suite_of(members):
            draw_benchmarks(folder / f"benchmarks-{model}.png", group_jobs(members, swept_fields(members)), suite)


def csv_table(jobs: Sequence[Job], folder: Path) -> str:
    """One line a number: where it comes from (`run` is below `folder`), the swept settings, value, interval and n."""
    fields = list(dict.fromkeys(name for members in by_model(jobs).values() for name in swept_fields(members)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "model", "arm", "seed", *fields, "track", "kind", "metric", "value", "low", "high", "n"])
    for job in jobs:
        found = json.loads((job.run / "evaluate" / job.model / "scores.json").read_text(encoding="utf-8"))
        head = [
            str(job.run.relative_to(folder)),
            job.model,
            job.arm,
            job.seed,
            *(job.settings.get(name) for name in fields),
        ]
        kinds = [(track, "", metrics) for track, metrics in found["pictures"].items()]
        kinds += [
            (track, kind, metrics) for track, by_kind in found["questions"].items() for kind, metrics in by_kind.items()
        ]
        kinds += [
            (track, f"each {kind}", metrics)
            for track, by_kind in found.get("groups", {}).items()
            for kind, metrics in by_kind.items()
        ]
        kinds += [("mean", "", found["mean"])] if "mean" in found else []
        for track, kind, metrics in kinds:
            for metric, number in metrics.items():
                writer.writerow([*head, track, kind, metric, *(number[key] for key in ("value", "low", "high", "n"))])
    return text.getvalue()


def markdown_tables(jobs: Sequence[Job], arms: Arms, *, title: str) -> str:
    """For each model and track: numbers by arm and setting, then paired differences with the other arms."""
    parts = [
        f"# {title}",
        "Means over seeds with 95 % intervals: bootstrap over pictures and, with several runs, over seeds as well. "
        f"Differences are {arms.ours} minus the other, paired by picture and seed; **bold** intervals leave out zero. "
        "NLL and margin in nats, shares in percent.",
    ]
    for model, members in by_model(jobs).items():
        groups = group_jobs(members, swept_fields(members))
        suite = suite_of(members)
        if suite:
            parts.append(f"## {model}, benchmarks")
            parts += _benchmark_tables(groups, suite, arms)
        for track in (track for track in tracks(members) if track not in suite):
            parts.append(f"## {model}, {track} concepts")
            parts += _picture_tables(groups, track, arms)
            parts += _question_tables(groups, track, arms)
            parts += section(members, track)
    return "\n\n".join(parts) + "\n"


def _picture_tables(groups: Sequence[Group], track: str, arms: Arms) -> list[str]:
    metrics = [_PICTURES[name] for name in _COLUMNS]
    lines = [
        [*_head(group), *(cell(estimate(group, metric, row="picture", track=track), metric) for metric in metrics)]
        for group in groups
    ]
    if not any(text for line in lines for text in line[-len(metrics) :]):
        return []
    for label, names in _REFERENCES.items():
        shown = dict(zip(("naming_r1", "naming_r5"), names, strict=True))
        cells = [
            cell(estimate(groups[0], _PICTURES[shown[column]], row="picture", track=track), _PICTURES[column])
            if column in shown
            else ""
            for column in _COLUMNS
        ]
        lines.append([label, *[""] * (len(_head(groups[0])) - 1), *cells])
    table = markdown([*_head_names(groups, arms), *(metric.title for metric in metrics)], lines)
    return [table, *_difference_table(groups, [_PICTURES[name] for name in _COMPARED], "picture", track, arms)]


def _question_tables(groups: Sequence[Group], track: str, arms: Arms) -> list[str]:
    found = {
        metric.name: [estimate(group, metric, row="question", track=track) for group in groups]
        for metric in QUESTION_METRICS
    }
    metrics = [metric for metric in QUESTION_METRICS if any(found[metric.name])]
    if not metrics:
        return []
    lines = [
        [*_head(group), *(cell(found[metric.name][place], metric) for metric in metrics)]
        for place, group in enumerate(groups)
    ]
    table = markdown([*_head_names(groups, arms), *(metric.title for metric in metrics)], lines)
    compared = [metric for metric in metrics if metric.name != "constant" and not metric.own_scale]
    return [f"Questions of {ALL_KINDS} kinds:", table, *_difference_table(groups, compared, "question", track, arms)]


def _benchmark_tables(groups: Sequence[Group], suite: Sequence[str], arms: Arms) -> list[str]:
    """Accuracy on every benchmark and their mean, which is what the paper's tables hold; differences of the mean."""
    accuracy = next(metric for metric in QUESTION_METRICS if metric.name == "accuracy")
    lines = [
        [
            *_head(group),
            cell(estimate_mean(group, accuracy, tracks=suite), accuracy),
            *(cell(estimate(group, accuracy, row="question", track=track), accuracy) for track in suite),
        ]
        for group in groups
    ]
    table = markdown([*_head_names(groups, arms), "mean", *suite], lines)
    mean = [_Column("mean", lambda ours, other: difference_mean(ours, other, accuracy, tracks=suite), accuracy)]
    each = [_column(metric=accuracy, title=track, row="question", track=track) for track in suite]
    return ["Accuracy:", table, *_differences(groups, [*mean, *each], arms)]


@dataclass(frozen=True)
class _Column:
    """A column of paired differences: its title, how two groups differ, and the metric that says how it is shown."""

    title: str
    difference: Callable[[Group, Group], Estimate | None]
    metric: Metric


def _column(*, metric: Metric, title: str, row: str, track: str) -> _Column:
    return _Column(title, lambda ours, other: difference(ours, other, metric, row=row, track=track), metric)


def _difference_table(
    groups: Sequence[Group], metrics: Sequence[Metric], row: str, track: str, arms: Arms
) -> list[str]:
    columns = [_column(metric=metric, title=metric.title, row=row, track=track) for metric in metrics]
    return _differences(groups, columns, arms)


def _differences(groups: Sequence[Group], columns: Sequence[_Column], arms: Arms) -> list[str]:
    """Our arm minus each other one with the same settings, as a table; none where there is nothing to compare."""
    ours = {group.settings: group for group in groups if group.arm == arms.ours}
    lines = []
    for other in groups:
        if other.arm == arms.ours or other.settings not in ours:
            continue
        mine = ours[other.settings]
        seeds = len(set(group_seeds(mine)) & set(group_seeds(other)))
        cells = [cell(column.difference(mine, other), column.metric, difference=True) for column in columns]
        lines.append([f"{arms.ours} - {other.arm}", *(str(value) for _, value in other.settings), str(seeds), *cells])
    if not lines:
        return []
    return [
        markdown(["paired difference", *_head_names(groups, arms)[1:], *(column.title for column in columns)], lines)
    ]


def _head_names(groups: Sequence[Group], arms: Arms) -> list[str]:
    return [arms.title, *(name for name, _ in groups[0].settings), "seeds"]


def _head(group: Group) -> list[str]:
    return [group.arm, *(str(value) for _, value in group.settings), str(len(group.jobs))]
