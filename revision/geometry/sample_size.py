"""What a fit of few rows is worth: the gap on held-out rows, by how many it had (ReVision v3, App., sample size)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from revision.alignment import Alignment
from revision.geometry.held_out import MEASURES, Domain, Make, Moments, OnStep, apart, draw, left, mean_of, unit_rows


def size_curve(
    domain: Domain,
    make: Make,
    methods: Sequence[str],
    *,
    sizes: Sequence[int],
    trials: int,
    held_out: int,
    seed: int,
    on_step: OnStep = lambda step: None,
) -> dict[str, Any]:
    """The gap that is left on held-out rows when alignments are fitted on N rows a side (ReVision v3, App.).

    Each trial draws `held_out` rows a side to measure on and fits on the first N of the other rows that it draws, so
    that a larger fit contains the smaller ones.

    Args:
        domain: where rows are drawn from.
        make: gives an unfitted alignment of a method.
        methods: names that `make` knows.
        sizes: numbers N of rows a side, at least 2 each.
        trials: repetitions with other rows.
        held_out: rows a side to measure on.
        seed: of the draws.
        on_step: called with a description before each of the `trials * len(sizes)` steps.

    Returns:
        JSON values: the arguments; `raw`, the measures without alignment, mean over trials; `methods`, for each the
        measures as lists [size][trial], None where the method refused so few rows; `refused`, its sentences;
        `expected`, for each size the centroid gap that sampling alone gives, sqrt(2 T_x (1 / N + 1 / held_out)).

    Raises:
        ValueError: a size below 2, or more rows asked for than there are.
    """
    sizes = sorted(set(sizes))
    check_sizes(domain, sizes, held_out)
    raw: list[dict[str, float]] = []
    traces: list[float] = []
    outcomes: list[list[dict[str, _Outcome]]] = []  # [trial][size][method]
    for trial in range(trials):
        drawn = _Trial.of(domain, held_out, sizes[-1], [seed, trial])
        traces.append(float(np.trace(drawn.target.covariance)))
        raw.append(apart(drawn.text_out, drawn.target))
        outcomes.append([])
        for size in sizes:
            on_step(f"trial {trial + 1}: fit on {size:,} rows")
            sides = drawn.first(size)
            outcomes[-1].append({name: _Outcome.of(make(name), sides, drawn) for name in methods})
    return {
        "sizes": list(sizes),
        "trials": trials,
        "held_out": held_out,
        "seed": seed,
        "raw": mean_of(raw),
        "expected": [float(np.sqrt(2 * np.mean(traces) * (1 / size + 1 / held_out))) for size in sizes],
        **_by_method(outcomes, methods, sizes),
    }


@dataclass(frozen=True)
class _Trial:
    """Rows of one trial: those to measure on, unit, and the numbers of those that fits take the first of."""

    domain: Domain
    text: np.ndarray
    image: np.ndarray
    text_out: np.ndarray
    image_out: np.ndarray
    target: Moments

    @classmethod
    def of(cls, domain: Domain, held_out: int, most: int, seed: list[int]) -> _Trial:
        """A draw of rows to fit on and rows to hold out."""
        text, image = (
            draw(side, held_out + most, [*seed, number]) for number, side in enumerate((domain.text, domain.image))
        )
        image_out = unit_rows(domain.image, image[:held_out])
        text_out = unit_rows(domain.text, text[:held_out])
        return cls(domain, text[held_out:], image[held_out:], text_out, image_out, Moments.of(image_out))

    def first(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows of both sides to fit on."""
        text, image = (np.sort(rows[:size]) for rows in (self.text, self.image))
        return unit_rows(self.domain.text, text), unit_rows(self.domain.image, image)


@dataclass(frozen=True)
class _Outcome:
    """The measures of one fit on held-out rows, or why there was none: some maps need more rows than dimensions."""

    values: dict[str, float | None]
    refusal: str | None

    @classmethod
    def of(cls, alignment: Alignment, sides: tuple[np.ndarray, np.ndarray], trial: _Trial) -> _Outcome:
        """What an alignment that was fitted on the trial leaves there."""
        try:
            fitted = alignment.fit(*sides, measure_gap=False)
            return cls({**left(fitted, trial.text_out, trial.image_out, trial.target)}, None)
        except ValueError as error:
            return cls(dict.fromkeys(MEASURES), str(error))


def _by_method(
    outcomes: list[list[dict[str, _Outcome]]], methods: Sequence[str], sizes: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """`methods` and `refused` of `size_curve`."""
    places = range(len(sizes))
    found = {
        name: {
            measure: [[trial[place][name].values[measure] for trial in outcomes] for place in places]
            for measure in MEASURES
        }
        for name in methods
    }
    refused: dict[str, dict[int, str]] = {}
    for trial in outcomes:
        for size, by_name in zip(sizes, trial, strict=True):
            for name, outcome in by_name.items():
                if outcome.refusal is not None:
                    refused.setdefault(name, {}).setdefault(size, outcome.refusal)
    return {"methods": found, "refused": refused}


def check_sizes(domain: Domain, sizes: Sequence[int], held_out: int) -> None:
    """Hold that a domain has the rows that `size_curve` needs; raises its ValueError."""
    if not sizes or sizes[0] < 2 or held_out < 2:
        raise ValueError(f"sizes={list(sizes)} and held_out={held_out} must be numbers of rows, at least 2 each")
    for name, side in (("text", domain.text), ("image", domain.image)):
        if sizes[-1] + held_out > len(side):
            raise ValueError(
                f"a fit on {sizes[-1]:,} rows beside {held_out:,} held-out ones needs {sizes[-1] + held_out:,} {name} "
                f"rows, there are {len(side):,}: take smaller sizes, or hold out fewer rows"
            )
