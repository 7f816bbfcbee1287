"""The scores of one evaluation as tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from revision.evaluation.metrics import ALL_KINDS, PICTURE_METRICS, QUESTION_METRICS, Metric
from revision.evaluation.statistics import LEVEL, Estimate

BRIEF = {"accuracy", "accuracy_blind", "exact_gain", "constant"}  # metrics of questions that a terminal has room for


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and the lines of cells.

    brief: numbers of the columns that a terminal shows; None: all of them.
    """

    title: str
    head: list[str]
    lines: list[list[str]]
    brief: tuple[int, ...] | None = None

    def markdown(self) -> str:
        """A heading and a Markdown table."""
        return f"## {self.title}\n\n{markdown(self.head, self.lines)}"

    def rich(self) -> RichTable:
        """The table for a terminal: the first column on the left, numbers on the right.

        Intervals stand below their values where not all columns are shown, so that eighty characters hold a line.
        """
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        shown = range(len(self.head)) if self.brief is None else self.brief
        for place in shown:
            table.add_column(self.head[place], justify="left" if place == 0 else "right", overflow="fold")
        for line in self.lines:
            cells = (line[place] for place in shown)
            table.add_row(*(cell if self.brief is None else cell.replace(" [", "\n[") for cell in cells))
        return table


def score_tables(scores: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Tables of `metrics.scores` of several models: pictures by track, questions by track and kind, benchmarks.

    Benchmarks, tracks that hold nothing but questions, are one table a model: a line each, and their mean.
    """
    tables = []
    for track in _keys(scores, "pictures"):
        numbers = {model: found["pictures"].get(track, {}) for model, found in scores.items()}
        lines = [
            [metric.title, *(_number(numbers[model], metric) for model in scores)]
            for metric in PICTURE_METRICS
            if any(metric.name in found for found in numbers.values())
        ]
        n = max(number["n"] for found in numbers.values() for number in found.values())
        tables.append(Table(f"{track} concepts, {n} pictures", ["", *scores], lines))
    for model, found in scores.items():
        suite = _benchmarks(found)
        for track, kinds in found["questions"].items():
            if track not in suite:
                tables.append(_question_table(f"questions about {track} concepts, {model}", "kind", kinds))
        if suite:
            overall = {track: found["questions"][track][ALL_KINDS] for track in suite}
            tables.append(_question_table(f"benchmarks, {model}", "benchmark", overall | {"mean": found["mean"]}))
    return tables


def kind_tables(scores: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Of each benchmark and model: questions by kind, and groups of questions in which all answers are right."""
    tables = []
    for model, found in scores.items():
        for track in _benchmarks(found):
            grouped = found.get("groups", {}).get(track, {})
            lines = found["questions"][track] | {f"each {kind} as a whole": row for kind, row in grouped.items()}
            tables.append(_question_table(f"{track}, {model}", "kind", lines))
    return tables


def _benchmarks(found: Mapping[str, Any]) -> list[str]:
    return [track for track in found["questions"] if track not in found["pictures"]]


def _question_table(title: str, first: str, lines: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line for each set of questions; metrics that none of them has are no column, and a terminal shows a few."""
    metrics = [metric for metric in QUESTION_METRICS if any(metric.name in numbers for numbers in lines.values())]
    cells = [
        [name, str(next(iter(numbers.values()))["n"]), *(_number(numbers, metric) for metric in metrics)]
        for name, numbers in lines.items()
    ]
    brief = (0, 1, *(place for place, metric in enumerate(metrics, start=2) if metric.name in BRIEF))
    return Table(title, [first, "n", *(metric.title for metric in metrics)], cells, brief)


def report(scores: Mapping[str, Mapping[str, Any]], *, title: str) -> str:
    """All tables of one evaluation as a Markdown page."""
    note = f"In brackets {LEVEL:.0%} bootstrap intervals; NLL and margins in nats, shares in percent."
    tables = [*score_tables(scores), *kind_tables(scores)]
    return "\n\n".join([f"# {title}", note, *(table.markdown() for table in tables)]) + "\n"


def cell(number: Estimate | None, metric: Metric, *, difference: bool = False) -> str:
    """A value with its interval; shares in percent. A difference has a sign, and a bold interval that leaves out 0."""
    if number is None:
        return ""
    scale, digits = (100, 1) if metric.percent else (1, 3)
    sign = "+" if difference else ""
    value, low, high = (f"{scale * part:{sign}.{digits}f}" for part in (number.value, number.low, number.high))
    if np.isclose(number.low, number.high):  # the same for every unit: nothing was sampled
        return value
    ends = f"[{low}, {high}]"
    clear = difference and (number.low > 0 or number.high < 0)
    return f"{value} **{ends}**" if clear else f"{value} {ends}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _keys(scores: Mapping[str, Mapping[str, Any]], part: str) -> list[str]:
    return list(dict.fromkeys(track for found in scores.values() for track in found[part]))


def _number(numbers: Mapping[str, Any], metric: Metric) -> str:
    return cell(Estimate(**numbers[metric.name]) if metric.name in numbers else None, metric)
