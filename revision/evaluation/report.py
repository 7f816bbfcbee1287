"""The scores of one evaluation as tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table as RichTable

from revision.evaluation.metrics import PICTURE_METRICS, QUESTION_METRICS, Metric
from revision.evaluation.statistics import LEVEL, Estimate


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and the lines of cells."""

    title: str
    head: list[str]
    lines: list[list[str]]

    def markdown(self) -> str:
        """A heading and a Markdown table."""
        return f"## {self.title}\n\n{markdown(self.head, self.lines)}"

    def rich(self) -> RichTable:
        """The table for a terminal: the first column on the left, numbers on the right."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        for place, name in enumerate(self.head):
            table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
        for line in self.lines:
            table.add_row(*line)
        return table


def score_tables(scores: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Tables of `metrics.scores` of several models side by side: pictures by track, questions by track and kind."""
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
    for track in _keys(scores, "questions"):
        for model in (name for name, found in scores.items() if track in found["questions"]):
            kinds = scores[model]["questions"][track]
            lines = [
                [kind, str(numbers["exact"]["n"]), *(_number(numbers, metric) for metric in QUESTION_METRICS)]
                for kind, numbers in kinds.items()
            ]
            head = ["kind", "n", *(metric.title for metric in QUESTION_METRICS)]
            tables.append(Table(f"questions about {track} concepts, {model}", head, lines))
    return tables


def report(scores: Mapping[str, Mapping[str, Any]], *, title: str) -> str:
    """All tables of one evaluation as a Markdown page."""
    note = f"In brackets {LEVEL:.0%} bootstrap intervals; NLL and margins in nats, shares in percent."
    return "\n\n".join([f"# {title}", note, *(table.markdown() for table in score_tables(scores))]) + "\n"


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
