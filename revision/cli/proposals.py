"""What a search has tried, and what Optuna would try next. Knows neither jobs nor configurations.

A study is built anew from the trials that are known for every proposal, with a seed that depends on their number. So a
search that was interrupted goes on as it would have, and nothing of Optuna's own is kept on disk.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study

Value = str | int | float
_TRIES = 50  # for a proposal that is new
_DIGITS = 4  # significant ones of a proposed number: it becomes part of a folder's name


@dataclass(frozen=True)
class Choice:
    """One of some values, in no order."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Span:
    """A number from `low` to `high`, both included.

    Attributes:
        step: between the numbers that may be; None: any.
        log: proposed evenly in its logarithm.
        whole: an integer.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False


Space = Mapping[str, Choice | Span]
Point = dict[str, Value]


def require_optuna(trials: int) -> None:
    """Raises ValueError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ValueError(
            f"search.trials = {trials}: Optuna is not installed; `pip install 'revision-mllm[sweeps]'`, or leave it "
            "null for a grid."
        )


def propose(
    space: Space,
    known: Sequence[tuple[Point, float]],
    *,
    count: int,
    taken: Sequence[Point],
    maximize: bool,
    sampler: str,
    seed: int,
) -> list[Point]:
    """Points to try next, at most `count`; fewer where nothing new was found, which in a finite space means the end.

    Args:
        space: what may vary, by name.
        known: points and their scores; those outside of the space are left out.
        taken: all points that need no second try: the known ones, and those that failed.
        maximize: higher scores are better.
        sampler: "tpe" or "random".
        seed: of the proposals, together with the number of points taken.
    """
    study = _study(space, known, maximize=maximize, sampler=sampler, seed=1_000_003 * seed + len(taken))
    found: list[Point] = []
    for _ in range(_TRIES):
        trial = study.ask({name: _distribution(one) for name, one in space.items()})
        point: Point = {name: _rounded(space[name], value) for name, value in trial.params.items()}
        if point not in found and point not in taken:
            found.append(point)
        if len(found) == count:
            break
    if not found:
        left = (point for point in all_points(space) or () if point not in taken)
        return list(islice(left, count))
    return found


def all_points(space: Space) -> Iterator[Point] | None:
    """Every point of a space of choices and whole numbers; None for one with others."""
    if not all(isinstance(one, Choice) or one.whole for one in space.values()):
        return None
    values = [
        one.values if isinstance(one, Choice) else range(int(one.low), int(one.high) + 1, int(one.step or 1))
        for one in space.values()
    ]
    return (dict(zip(space, point, strict=True)) for point in product(*values))


def _study(space: Space, known: Sequence[tuple[Point, float]], *, maximize: bool, sampler: str, seed: int) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers: dict[str, Any] = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study = optuna.create_study(
        direction="maximize" if maximize else "minimize", sampler=samplers[sampler](seed=seed % 2**32)
    )
    distributions = {name: _distribution(one) for name, one in space.items()}
    for point, score in known:
        if contains(space, point):
            study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=score))
    return study


def contains(space: Space, point: Point) -> bool:
    """Whether a point has exactly the names of a space, each with a value that it may take."""
    return space.keys() == point.keys() and all(_may_be(one, point[name]) for name, one in space.items())


def _may_be(one: Choice | Span, value: Value) -> bool:
    if isinstance(one, Choice):
        return value in one.values
    if isinstance(value, str) or not one.low <= value <= one.high or (one.whole and value != int(value)):
        return False
    steps = 0.0 if one.step is None else (value - one.low) / one.step
    return abs(steps - round(steps)) < 1e-8


def _distribution(one: Choice | Span) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(one, Choice):
        return CategoricalDistribution(one.values)
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return FloatDistribution(one.low, one.high, log=one.log, step=one.step)


def _rounded(one: Choice | Span, value: Any) -> Value:
    if isinstance(one, Choice) or one.whole or one.step is not None:
        known: Value = value
        return known
    return min(max(float(f"{value:.{_DIGITS}g}"), one.low), one.high)
