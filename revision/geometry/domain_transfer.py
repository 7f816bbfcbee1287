"""What statistics are worth in another domain than that of their rows (ReVision v3, App., domain transfer)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from revision.geometry import measures
from revision.geometry.held_out import MEASURES, Domain, Make, Moments, OnStep, apart, draw, left, mean_of, unit_rows


def domain_transfer(
    domains: Mapping[str, Domain],
    make: Make,
    methods: Sequence[str],
    *,
    most: int,
    trials: int,
    seed: int,
    on_step: OnStep = lambda step: None,
) -> dict[str, Any]:
    """Fit on each domain, measure on each: what statistics are worth elsewhere (ReVision v3, App., domain transfer).

    Each trial splits the rows of each domain at random: one half fits, the other half is measured on, so that the
    diagonal is held out too and the whole matrix compares.

    Args:
        domains: by name, at least one, all of one encoder.
        make: gives an unfitted alignment of a method.
        methods: names that `make` knows.
        most: rows a side of a domain that are used at most, drawn at random.
        trials: repetitions with other halves.
        seed: of the draws.
        on_step: called with a description before each of the `trials * len(domains)` steps.

    Returns:
        JSON values: the arguments; `rows`, how many each half of a domain has; `raw`, by domain, the measures without
        alignment; `floor`, by domain, the centroid gap that sampling alone leaves; `methods`, for each and each measure
        `mean` and `std` over trials as matrices [fitted on][measured on], None where the method refused a half;
        `refused`, its sentences, by method and domain that was fitted on.

    Raises:
        ValueError: a domain with fewer than 8 rows on a side.
    """
    names = list(domains)
    _check_domains(domains)
    shape = (trials, len(names), len(names))
    found = {method: {measure: np.full(shape, np.nan) for measure in MEASURES} for method in methods}
    refused: dict[str, dict[str, str]] = {}
    raw: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    floors: dict[str, list[float]] = {name: [] for name in names}
    for trial in range(trials):
        halves = {name: _halves(domain, most, [seed, trial]) for name, domain in domains.items()}
        targets = {name: Moments.of(half.image_out) for name, half in halves.items()}
        for name, half in halves.items():
            raw[name].append(apart(half.text_out, targets[name]))
            floors[name].append(measures.centroid_gap_floor(half.text_out, half.image_out))
        for row, source in enumerate(names):
            on_step(f"trial {trial + 1}: fit on {source}")
            for method in methods:
                try:
                    fitted = make(method).fit(halves[source].text_fit, halves[source].image_fit, measure_gap=False)
                    for column, (target, held) in enumerate(halves.items()):
                        values = left(fitted, held.text_out, held.image_out, targets[target])
                        for measure in MEASURES:
                            found[method][measure][trial, row, column] = values[measure]
                except ValueError as error:
                    refused.setdefault(method, {}).setdefault(source, str(error))
    return {
        "domains": names,
        "rows": {name: {"text": len(half.text_out), "image": len(half.image_out)} for name, half in halves.items()},
        "trials": trials,
        "seed": seed,
        "raw": {name: mean_of(values) for name, values in raw.items()},
        "floor": {name: float(np.mean(values)) for name, values in floors.items()},
        "methods": {method: _mean_and_std(by_measure) for method, by_measure in found.items()},
        "refused": refused,
    }


def _check_domains(domains: Mapping[str, Domain]) -> None:
    for name, domain in domains.items():
        if min(len(domain.text), len(domain.image)) < 8:
            raise ValueError(
                f"domain {name} has {len(domain.text)} texts and {len(domain.image)} images; half of each is fitted on "
                f"and half measured on, so give at least 8 of both"
            )


def _mean_and_std(by_measure: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Over trials, the first axis of each measure's array; None where a trial has no number."""

    def plain(matrix: np.ndarray) -> list[list[float | None]]:
        """As JSON has it, which knows no NaN."""
        return [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]

    return {
        measure: {"mean": plain(values.mean(axis=0)), "std": plain(values.std(axis=0))}
        for measure, values in by_measure.items()
    }


@dataclass(frozen=True)
class _Halves:
    """Unit rows of one domain: one half of each side to fit on, the other to measure on."""

    text_fit: np.ndarray
    text_out: np.ndarray
    image_fit: np.ndarray
    image_out: np.ndarray


def _halves(domain: Domain, most: int, seed: list[int]) -> _Halves:
    parts = []
    for number, side in enumerate((domain.text, domain.image)):
        rows = draw(side, min(most, len(side)), [*seed, number])
        parts += [unit_rows(side, np.sort(part)) for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :])]
    return _Halves(*parts)
