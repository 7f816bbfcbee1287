"""What is computed from the rows of predictions: each metric once, for `scores.json` and for the tables of sweeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from revision.evaluation.statistics import Estimate, interval, mean_of_parts

Row = dict[str, Any]
ALL_KINDS = "all"  # the kind under which questions of every kind are counted together


@dataclass(frozen=True)
class Metric:
    """A mean over rows, or with `per` a ratio of sums over rows. `needs` is a field that rows without it lack.

    own_scale: whether `per` depends on what a model says, so that two models share no denominator.
    """

    name: str
    title: str
    needs: str
    value: Callable[[Row], float]
    per: Callable[[Row], float] | None = None
    percent: bool = False
    own_scale: bool = False

    @property
    def factor(self) -> float:
        """By which a value is multiplied to be shown."""
        return 100.0 if self.percent else 1.0

    def arrays(self, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray | None]:
        """Numerators and denominators of the rows that have the field, float64 [n]; of questions, [pictures].

        Questions about one picture are no independent draws: their sums are one unit, whose denominator is the sum of
        theirs. Denominators are None where all are one.
        """
        counted = [row for row in rows if self.needs in row]
        top = np.array([self.value(row) for row in counted], dtype=np.float64)
        bottom = np.array([1.0 if self.per is None else self.per(row) for row in counted], dtype=np.float64)
        units = list(dict.fromkeys(row.get("image", row["id"]) for row in counted))
        if len(units) < len(counted):
            place = {unit: number for number, unit in enumerate(units)}
            of_row = [place[row.get("image", row["id"])] for row in counted]
            sums = np.zeros((len(units), 2))
            np.add.at(sums, np.array(of_row), np.stack([top, bottom], axis=1))
            return sums[:, 0], sums[:, 1]
        return top, None if self.per is None else bottom

    def count(self, rows: Sequence[Row]) -> int:
        """How many rows have the field."""
        return sum(self.needs in row for row in rows)


def _per_token(name: str, title: str, value: Callable[[Row], float]) -> Metric:
    return Metric(name, title, needs="nll", value=value, per=lambda row: row["tokens"])


def _recall(name: str, title: str, field: str, k: int) -> Metric:
    return Metric(name, f"{title} R@{k}", needs=field, value=lambda row: row[field] <= k, percent=True)


def _chance(k: int) -> Metric:
    def value(row: Row) -> float:
        """Chance of a name among the first k."""
        return min(1.0, k / row["candidates"])

    return Metric(f"naming_r{k}_chance", f"chance R@{k}", needs="candidates", value=value, percent=True)


def _share(name: str, title: str, field: str) -> Metric:
    return Metric(name, title, needs=field, value=lambda row: row[field], percent=True)


PICTURE_METRICS: list[Metric] = [
    Metric("caption_nll", "NLL / caption", needs="nll", value=lambda row: row["nll"]),
    _per_token("token_nll", "NLL / token", lambda row: row["nll"]),
    _per_token("token_nll_other", "NLL / token, other picture", lambda row: row["nll_other"]),
    _per_token("token_nll_blind", "NLL / token, no picture", lambda row: row["nll_blind"]),
    _per_token("margin", "margin / token", lambda row: row["nll_other"] - row["nll"]),
    _per_token("margin_blind", "margin over no picture / token", lambda row: row["nll_blind"] - row["nll"]),
    *(
        _recall(f"naming_r{k}{suffix}", f"naming{title}", f"rank{suffix}", k)
        for suffix, title in (
            ("", ""),
            ("_likelihood", " by likelihood"),
            ("_blind", " without picture"),
            ("_encoder", " by the encoder"),
        )
        for k in (1, 5)
    ),
    _chance(1),
    _chance(5),
]


def _f1(name: str, title: str, said: str) -> Metric:
    """Harmonic mean of precision and recall of yes: twice the hits over all yes that are given or right."""
    return Metric(
        name,
        title,
        needs=said,
        value=lambda row: 2.0 * (row["is_yes"] and row[said]),
        per=lambda row: float(row["is_yes"]) + float(row[said]),
        percent=True,
        own_scale=True,
    )


GROUP_METRICS: list[Metric] = [
    _share("accuracy", "accuracy", "right"),
    _share("accuracy_blind", "accuracy, no picture", "right_blind"),
]

QUESTION_METRICS: list[Metric] = [
    *GROUP_METRICS,
    _share("exact", "exact match", "correct"),
    _share("exact_blind", "exact match, no picture", "correct_blind"),
    Metric(
        "exact_gain",
        "exact match over blind",
        needs="correct",
        value=lambda row: float(row["correct"]) - float(row["correct_blind"]),
        percent=True,
    ),
    _share("choice", "likeliest choice", "chosen"),
    _share("choice_blind", "likeliest choice, no picture", "chosen_blind"),
    _f1("f1", "F1 of yes", "yes"),
    _f1("f1_blind", "F1 of yes, no picture", "yes_blind"),
    _share("constant", "most frequent answer", "constant"),
]


def summarise(
    rows: Sequence[Row], metrics: Sequence[Metric], *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Each metric's value, interval (low, high) and n over rows; metrics that no row has are left out."""
    summary = {}
    for metric in metrics:
        if n := metric.count(rows):
            top, bottom = metric.arrays(rows)
            found = interval(top, bottom, resamples=resamples, seed=seed)
            summary[metric.name] = asdict(replace(found, n=n))
    return summary


def scores(rows: Sequence[Row], *, resamples: int, seed: int) -> dict[str, Any]:
    """The body of `scores.json` from all rows of predictions of one model.

    Returns {"pictures": {track: {metric: {value, low, high, n}}}, "questions": {track: {kind: {metric: ...}}}}; the
    kind `all` holds every question of the track. Where questions are in groups, "groups": {track: {kind of group:
    {metric: ...}}}, of groups in which all answers are right. Where there are benchmarks (`benchmarks`), "mean":
    {metric: ...}, the mean over them, in which each counts alike.
    """
    found: dict[str, Any] = {"pictures": {}, "questions": {}}
    for track in dict.fromkeys(row["track"] for row in rows):
        pictures = [row for row in rows if row["row"] == "picture" and row["track"] == track]
        questions = [row for row in rows if row["row"] == "question" and row["track"] == track]
        if pictures:
            found["pictures"][track] = summarise(pictures, PICTURE_METRICS, resamples=resamples, seed=seed)
        if questions:
            kinds = {ALL_KINDS: questions}
            for kind in sorted({row["kind"] for row in questions}):
                kinds[kind] = [row for row in questions if row["kind"] == kind]
            found["questions"][track] = {
                kind: summarise(members, QUESTION_METRICS, resamples=resamples, seed=seed)
                for kind, members in kinds.items()
            }
        if grouped := groups_of(questions):
            found.setdefault("groups", {})[track] = {
                kind: summarise(members, GROUP_METRICS, resamples=resamples, seed=seed)
                for kind, members in grouped.items()
            }
    if names := benchmarks(rows):
        found["mean"] = {
            metric.name: asdict(mean)
            for metric in QUESTION_METRICS
            if (mean := mean_over(rows, names, metric, resamples=resamples, seed=seed)) is not None
        }
    return found


def benchmarks(rows: Sequence[Row]) -> list[str]:
    """Tracks that hold nothing but questions: benchmarks of their own, in the order of their rows."""
    shown = {row["track"] for row in rows if row["row"] == "picture"}
    return [track for track in dict.fromkeys(row["track"] for row in rows) if track not in shown]


def groups_of(questions: Sequence[Row]) -> dict[str, list[Row]]:
    """A row for each group of questions, by the kind of group: whether all answers of the group are right."""
    members: dict[str, dict[str, list[Row]]] = {}
    for row in questions:
        for kind, name in row.get("groups", {}).items():
            members.setdefault(kind, {}).setdefault(name, []).append(row)
    return {
        kind: [
            {"id": name, **{field: all(row[field] for row in rows) for field in ("right", "right_blind")}}
            for name, rows in named.items()
        ]
        for kind, named in members.items()
    }


def mean_over(
    rows: Sequence[Row], names: Sequence[str], metric: Metric, *, resamples: int, seed: int
) -> Estimate | None:
    """The mean of a metric over benchmarks; None where one of them lacks it."""
    members = [[row for row in rows if row["track"] == name] for name in names]
    counts = [metric.count(some) for some in members]
    if not all(counts):
        return None
    found = mean_of_parts([metric.arrays(some) for some in members], resamples=resamples, seed=seed)
    return replace(found, n=sum(counts))
