"""The tables of a sweep: every number as CSV, means over seeds and paired differences as Markdown, and the figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from revision.evaluation.figures import draw_map, draw_scaling, draw_table
from revision.evaluation.files import write_text
from revision.evaluation.metrics import ALL_KINDS, PICTURE_METRICS, QUESTION_METRICS, Metric
from revision.evaluation.report import cell, markdown
from revision.evaluation.scaling import scalings, section
from revision.evaluation.sweeps import (
    Group,
    Job,
    by_model,
    difference,
    estimate,
    group_jobs,
    group_seeds,
    read_jobs,
    swept_fields,
    tracks,
)

OURS = "realign"  # the arm that the others are compared with

_PICTURES = {metric.name: metric for metric in PICTURE_METRICS}
_COLUMNS = ["token_nll", "margin", "token_nll_blind", "naming_r1", "naming_r5", "naming_r5_likelihood"]
_REFERENCES = {
    "encoder, cosine": ("naming_r1_encoder", "naming_r5_encoder"),
    "chance": ("naming_r1_chance", "naming_r5_chance"),
}
_COMPARED = ["token_nll", "margin", "naming_r1", "naming_r5"]


def collect(folder: Path) -> None:
    """Writes table.csv, table.md, table.png and, where a setting beside the alignment was swept, map-MODEL-TRACK.png.

    Where numbers of texts and of pairs were swept, scaling-MODEL-TRACK.png too.

    folder: of a sweep; every `evaluate/<model>/scores.json` below it is a row. Raises ValueError when there is none.
    """
    jobs = read_jobs(folder)
    write_text(folder / "table.csv", csv_table(jobs, folder))
    write_text(folder / "table.md", markdown_tables(jobs, title=folder.name))
    draw_table(folder / "table.png", jobs)
    for model, members in by_model(jobs).items():
        for track in tracks(members) if swept_fields(members) else []:
            draw_map(folder / f"map-{model}-{track}.png", members, ours=OURS, track=track)
            if found := scalings(members, track):
                draw_scaling(folder / f"scaling-{model}-{track}.png", found, title=f"{model}, {track} concepts")


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
        for track, kind, metrics in kinds:
            for metric, number in metrics.items():
                writer.writerow([*head, track, kind, metric, *(number[key] for key in ("value", "low", "high", "n"))])
    return text.getvalue()


def markdown_tables(jobs: Sequence[Job], *, title: str) -> str:
    """For each model and track: numbers by alignment and setting, then paired differences with the other alignments."""
    parts = [
        f"# {title}",
        "Means over seeds with 95 % intervals: bootstrap over pictures and, with several runs, over seeds as well. "
        f"Differences are {OURS} minus the other, paired by picture and seed; **bold** intervals leave out zero. "
        "NLL and margin in nats, shares in percent.",
    ]
    for model, members in by_model(jobs).items():
        groups = group_jobs(members, swept_fields(members))
        for track in tracks(members):
            parts.append(f"## {model}, {track} concepts")
            parts += _picture_tables(groups, track)
            parts += _question_tables(groups, track)
            parts += section(members, track)
    return "\n\n".join(parts) + "\n"


def _picture_tables(groups: Sequence[Group], track: str) -> list[str]:
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
    table = markdown([*_head_names(groups), *(metric.title for metric in metrics)], lines)
    return [table, *_difference_table(groups, [_PICTURES[name] for name in _COMPARED], "picture", track)]


def _question_tables(groups: Sequence[Group], track: str) -> list[str]:
    lines = [
        [
            *_head(group),
            *(cell(estimate(group, metric, row="question", track=track), metric) for metric in QUESTION_METRICS),
        ]
        for group in groups
    ]
    if not any(text for line in lines for text in line[-len(QUESTION_METRICS) :]):
        return []
    table = markdown([*_head_names(groups), *(metric.title for metric in QUESTION_METRICS)], lines)
    return [
        f"Questions of {ALL_KINDS} kinds:",
        table,
        *_difference_table(groups, QUESTION_METRICS[:-1], "question", track),
    ]


def _difference_table(groups: Sequence[Group], metrics: Sequence[Metric], row: str, track: str) -> list[str]:
    ours = {group.settings: group for group in groups if group.arm == OURS}
    lines = []
    for other in groups:
        if other.arm == OURS or other.settings not in ours:
            continue
        mine = ours[other.settings]
        seeds = len(set(group_seeds(mine)) & set(group_seeds(other)))
        cells = [
            cell(difference(mine, other, metric, row=row, track=track), metric, difference=True) for metric in metrics
        ]
        lines.append([f"{OURS} - {other.arm}", *(str(value) for _, value in other.settings), str(seeds), *cells])
    if not lines:
        return []
    return [markdown(["paired difference", *_head_names(groups)[1:], *(metric.title for metric in metrics)], lines)]


def _head_names(groups: Sequence[Group]) -> list[str]:
    return ["alignment", *(name for name, _ in groups[0].settings), "seeds"]


def _head(group: Group) -> list[str]:
    return [group.arm, *(str(value) for _, value in group.settings), str(len(group.jobs))]
