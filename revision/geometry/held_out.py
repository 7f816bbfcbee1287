"""How an alignment does on rows that it was not fitted on: with few rows to fit, and in another domain.

Both questions are those of ReVision v3, App. (sample size; domain transfer). The gap is always measured on rows that no
fit has seen, and without training noise, since the question is what the statistics are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from revision.alignment import Alignment
from revision.alignment.rows import to_sphere
from revision.embeddings import EmbeddingStore
from revision.geometry import measures

Rows: TypeAlias = np.ndarray | EmbeddingStore
Make: TypeAlias = Callable[[str], Alignment]  # an unfitted alignment, by the name of its method
OnStep: TypeAlias = Callable[[str], None]
MEASURES = ("centroid_gap", "frechet_distance")


@dataclass(frozen=True)
class Domain:
    """Texts and images of one domain, rows [n, d] each, as arrays or as embedding stores; they need not be paired."""

    text: Rows
    image: Rows


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
        raw.append(_apart(drawn.text_out, drawn.target))
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
        "raw": _mean_of(raw),
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
    target: _Moments

    @classmethod
    def of(cls, domain: Domain, held_out: int, most: int, seed: list[int]) -> _Trial:
        """A draw of rows to fit on and rows to hold out."""
        text, image = (
            _draw(side, held_out + most, [*seed, number]) for number, side in enumerate((domain.text, domain.image))
        )
        image_out = _unit(domain.image, image[:held_out])
        text_out = _unit(domain.text, text[:held_out])
        return cls(domain, text[held_out:], image[held_out:], text_out, image_out, _Moments.of(image_out))

    def first(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows of both sides to fit on."""
        text, image = (np.sort(rows[:size]) for rows in (self.text, self.image))
        return _unit(self.domain.text, text), _unit(self.domain.image, image)


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
            return cls({**_left(fitted, trial.text_out, trial.image_out, trial.target)}, None)
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
        targets = {name: _Moments.of(half.image_out) for name, half in halves.items()}
        for name, half in halves.items():
            raw[name].append(_apart(half.text_out, targets[name]))
            floors[name].append(measures.centroid_gap_floor(half.text_out, half.image_out))
        for row, source in enumerate(names):
            on_step(f"trial {trial + 1}: fit on {source}")
            for method in methods:
                try:
                    fitted = make(method).fit(halves[source].text_fit, halves[source].image_fit, measure_gap=False)
                    for column, (target, held) in enumerate(halves.items()):
                        values = _left(fitted, held.text_out, held.image_out, targets[target])
                        for measure in MEASURES:
                            found[method][measure][trial, row, column] = values[measure]
                except ValueError as error:
                    refused.setdefault(method, {}).setdefault(source, str(error))
    return {
        "domains": names,
        "rows": {name: {"text": len(half.text_out), "image": len(half.image_out)} for name, half in halves.items()},
        "trials": trials,
        "seed": seed,
        "raw": {name: _mean_of(values) for name, values in raw.items()},
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
class _Moments:
    """Mean [d] and covariance [d, d] of rows, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> _Moments:
        """Mean and covariance of rows [n, d]."""
        return cls(rows.mean(axis=0, dtype=np.float64), measures.covariance(rows))


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
        rows = _draw(side, min(most, len(side)), [*seed, number])
        parts += [_unit(side, np.sort(part)) for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :])]
    return _Halves(*parts)


def _left(fitted: Alignment, text: np.ndarray, image: np.ndarray, unmoved: _Moments) -> dict[str, float]:
    """The measures of rows under an alignment; `unmoved` are the moments of `image`, which most alignments leave."""
    moved = moved_by(fitted, image)
    return _apart(fitted.apply(text), unmoved if moved is None else _Moments.of(moved))


def moved_by(fitted: Alignment, image: np.ndarray) -> np.ndarray | None:
    """Unit image rows [n, d] as an alignment maps them at inference; None where it leaves them (all but Unicorn)."""
    return fitted.apply_to_images(image) if fitted.moves_images else None


def _apart(text: np.ndarray, image: _Moments) -> dict[str, float]:
    """The measures of mapped text rows [n, d] against the image moments."""
    own = _Moments.of(text)
    return {
        "centroid_gap": float(np.linalg.norm(own.mean - image.mean)),
        "frechet_distance": measures.frechet_distance(own.mean, own.covariance, image.mean, image.covariance),
    }


def _mean_of(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {measure: float(np.mean([value[measure] for value in values])) for measure in MEASURES}


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


def _draw(rows: Rows, count: int, seed: list[int]) -> np.ndarray:
    """Different row numbers in random order, int64 [count].

    The seed is another one for texts than for images: the same numbers from stores of pairs would be a sample of pairs.
    """
    return np.random.default_rng(seed).choice(len(rows), count, replace=False)


def _unit(rows: Rows, numbers: np.ndarray) -> np.ndarray:
    """Unit rows, float32 [n, d], or float64 from a float64 array."""
    chosen = rows[numbers] if isinstance(rows, np.ndarray) else rows.rows(numbers)
    working = torch.from_numpy(np.array(chosen))
    return to_sphere(working if working.dtype is torch.float64 else working.float(), "rows").numpy()
