"""How many texts one image-caption pair is worth: scores of a sweep against the number of texts, and of pairs.

So many pairs are worth the fewest texts with which the curve of the texts is as good. Between two measured points that
curve is a straight line over the logarithm of the number; beyond them nothing is claimed, and the answer is a bound.
Every resample of pictures and seeds gives curves and an answer of its own, on the same pictures for both; the
interval is over these answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from revision.evaluation.metrics import PICTURE_METRICS, Metric
from revision.evaluation.report import markdown
from revision.evaluation.statistics import LEVEL
from revision.evaluation.sweeps import (
    PAIRS,
    Group,
    Job,
    arm_order,
    base_settings,
    group_jobs,
    group_seeds,
    is_number,
    resamples_of,
    swept_fields,
)
from revision.progress import counted

LIMIT = "pretrain.limit"  # the number of records that a job learned from
STEPS = ("pretrain.trainer.max_steps", "trainer.max_steps")  # the first that is set counts

_METRICS = {metric.name: metric for metric in PICTURE_METRICS}
_MEASURED = {"naming_r5": True, "margin": True, "token_nll": False}  # whether higher is better


@dataclass(frozen=True)
class Equivalence:
    """So many pairs are worth so many texts, with the ends of the 95 % interval.

    Of `texts`, `low` and `high`, 0 stands for fewer than were measured, infinity for more.
    """

    pairs: int
    texts: float
    low: float
    high: float


@dataclass(frozen=True)
class Scaling:
    """One metric of one model and track against the number of texts, moved by `arm`, and of pairs, over shared seeds.

    Attributes:
        texts, pairs: numbers of records, int64 [p] and [q], ascending.
        of_texts, of_pairs: the metric at each, float64 [p] and [q].
        text_draws, pair_draws: the same from each resample, float64 [resamples, p] and [resamples, q].
        seeds: that all points have.
    """

    arm: str
    metric: Metric
    texts: np.ndarray
    pairs: np.ndarray
    of_texts: np.ndarray
    of_pairs: np.ndarray
    text_draws: np.ndarray
    pair_draws: np.ndarray
    seeds: int

    def equivalences(self) -> list[Equivalence]:
        """What each number of pairs is worth."""
        better = _MEASURED[self.metric.name]
        found = []
        for place, pairs in enumerate(self.pairs.tolist()):
            texts = texts_for(self.texts, self.of_texts, self.of_pairs[place], higher_is_better=better)
            draws = [
                texts_for(self.texts, curve, goal, higher_is_better=better)
                for curve, goal in zip(self.text_draws, self.pair_draws[:, place], strict=True)
            ]
            found.append(Equivalence(pairs, texts, *ends(draws)))
        return found


def texts_for(texts: np.ndarray, scores: np.ndarray, goal: float, *, higher_is_better: bool) -> float:
    """The fewest texts with which a curve reaches a goal.

    Args:
        texts: numbers of texts, [p], ascending.
        scores: at each, [p].
        goal: a score.
        higher_is_better: whether a higher score is a better one.

    Returns:
        Linear in log(texts) between neighbouring points; 0 where the first point is better already, infinity where no
        point is as good. Of a curve that rises and falls, the first crossing.
    """
    sign = 1.0 if higher_is_better else -1.0
    missing = sign * (goal - np.asarray(scores, dtype=np.float64))
    reached = np.flatnonzero(missing <= 0)
    if len(reached) == 0:
        return math.inf
    at = int(reached[0])
    if at == 0:
        return float(texts[0]) if missing[0] == 0 else 0.0
    before, after = missing[at - 1], missing[at]
    share = before / (before - after)
    return float(math.exp((1 - share) * math.log(texts[at - 1]) + share * math.log(texts[at])))


def ends(draws: Sequence[float]) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of draws, some of them 0 or infinite; each end is one of the draws."""
    ordered = np.sort(np.asarray(draws, dtype=np.float64))
    tail = (1 - LEVEL) / 2 * (len(ordered) - 1)
    return float(ordered[math.floor(tail)]), float(ordered[len(ordered) - 1 - math.floor(tail)])


def scalings(jobs: Sequence[Job], track: str, *, resamples: int = 2000) -> list[Scaling]:
    """Every metric of every alignment of texts beside that of the pairs.

    Args:
        jobs: of one model; those whose other swept settings are at their base, and whose limit is a number, count.

    Returns:
        Empty unless both numbers of texts, two at least, and of pairs were swept.
    """
    lines = _lines(jobs)
    pairs = lines.pop(PAIRS, [])
    found = []
    for name in _MEASURED:
        for arm, texts in lines.items():
            if not pairs or len(texts) < 2:
                continue
            groups = [*texts, *pairs]
            drawn = resamples_of(groups, _METRICS[name], row="picture", track=track, resamples=resamples)
            if drawn is None:
                continue
            values, draws = drawn
            cut = len(texts)
            counts = np.array([_limit(group) for group in groups], dtype=np.int64)
            seeds = len(set.intersection(*(set(group_seeds(group)) for group in groups)))
            found.append(
                Scaling(
                    arm, _METRICS[name], counts[:cut], counts[cut:], values[:cut], values[cut:],
                    draws[:, :cut], draws[:, cut:], seeds,
                )
            )  # fmt: skip
    return found


def section(jobs: Sequence[Job], track: str) -> list[str]:
    """The parts of a Markdown page: what was held fixed, a table, and where the curves do not meet."""
    found = scalings(jobs, track)
    parts = []
    for arm in dict.fromkeys(one.arm for one in found):
        members = [one for one in found if one.arm == arm]
        columns = [one.equivalences() for one in members]
        lines = [
            [f"{row[0].pairs:,}", *(_cell(one, of) for one, of in zip(members, row, strict=True))]
            for row in zip(*columns, strict=True)
        ]
        head = ["pairs", *(f"by {one.metric.title}" for one in members)]
        apart = [_apart(one, column) for one, column in zip(members, columns, strict=True)]
        seeds = counted(members[0].seeds, "seed", "seeds")
        parts += [
            f"Texts that one pair is worth, texts moved by {arm}, {seeds}; interpolated over the "
            f"logarithm of their number, 95 % intervals over pictures and seeds. {_held(jobs)}",
            markdown(head, lines),
            *filter(None, apart),
        ]
    if found and any(not is_number(job.settings.get(LIMIT)) for job in jobs):
        parts.append(f"Jobs with {LIMIT} = null are left out here: their settings do not tell how many records it was.")
    return parts


def _lines(jobs: Sequence[Job]) -> dict[str, list[Group]]:
    """Groups by arm that differ in the number of records, ascending, all else being at its base."""
    fields = swept_fields(jobs)
    if LIMIT not in fields:
        return {}
    base = base_settings(jobs, fields)
    lines: dict[str, list[Group]] = {}
    for group in group_jobs(jobs, fields):
        others = all(value == base[name] for name, value in group.settings if name != LIMIT)
        if others and is_number(dict(group.settings)[LIMIT]):
            lines.setdefault(group.arm, []).append(group)
    return {arm: sorted(lines[arm], key=_limit) for arm in sorted(lines, key=arm_order)}


def _limit(group: Group) -> int:
    return int(dict(group.settings)[LIMIT])


def _held(jobs: Sequence[Job]) -> str:
    """Whether the amount of data alone varied."""
    lines = [job for groups in _lines(jobs).values() for group in groups for job in group.jobs]
    steps = {next((job.settings[name] for name in STEPS if job.settings.get(name)), None) for job in lines}
    fixed = steps.pop() if len(steps) == 1 else None
    if fixed is not None and fixed > 0:
        return (
            f"Every point had {fixed:,} steps: the amount of data alone varies, and with it how often a record is met."
        )
    return "The points differ in steps: more records were also more training."


def _cell(one: Scaling, found: Equivalence) -> str:
    """Texts per pair with its interval; bounds where the curve of the texts ends."""
    value, low, high = (_ratio(one, part, found.pairs) for part in (found.texts, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _ratio(one: Scaling, texts: float, pairs: int) -> str:
    if texts < one.texts[0]:
        return f"< {one.texts[0] / pairs:.3g}"
    if texts > one.texts[-1]:
        return f"> {one.texts[-1] / pairs:.3g}"
    return f"{texts / pairs:.3g}"


def _apart(one: Scaling, found: Sequence[Equivalence]) -> str:
    """A sentence where no number of pairs has a score that the curve of the texts passes through."""
    if any(0 < part.texts < math.inf for part in found):
        return ""
    name = one.metric.title
    if all(part.texts == 0 for part in found):
        how = f"{one.texts[0]:,} texts are better than each number of pairs"
    elif all(part.texts == math.inf for part in found):
        how = f"no number of texts up to {one.texts[-1]:,} is as good as any number of pairs"
    else:
        how = "some numbers of pairs lie below the curve of the texts and the others above it"
    return f"By {name} the two curves do not overlap: {how}. No number of texts can be named."
