"""The evaluated jobs of a sweep: their settings, grouped over seeds, and their numbers on the same pictures.

A job is one run folder with `evaluate/config.yaml` and `evaluate/<model>/predictions.jsonl`. Jobs are told apart by
the fields of their configs that differ; of these, the alignment (or `pairs`: stage 1 on real image-caption pairs) is
the job's arm and the seed is a repetition.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from revision.evaluation.metrics import Metric, Row, benchmarks
from revision.evaluation.statistics import Estimate, interval, mean_of_parts, paired_difference, resampled
from revision.fields import OPEN_MAPPINGS

ARMS = ["none", "mean_shift", "c3", "realign"]  # in the order of the tables; others follow, `pairs` comes last
PAIRS = "pairs"
MODELS = ["pretrain", "instruct"]  # in the order of the tables
_SPOKEN_FOR = {"name", "runs", "seed", "alignment.method", "pretrain.input"}
_TRAINER_SEEDS = ("trainer.seed", "trainer.data_seed")  # follow the run's own
# Fields that change what else a run does, or how it looks or runs, but no number that is compared here.
_IRRELEVANT = ("run.", "gap.", "chat.", "tracker", "evaluate.models", "evaluate.sheet", "evaluate.bootstrap",
               "evaluate.batch_size", "evaluate.device", "engine.peak_tflops", "plan.", "search.")  # fmt: skip


_OPEN = tuple(f"{mapping}." for mapping in OPEN_MAPPINGS)


@dataclass(frozen=True)
class Job:
    """One evaluated model of one run. `settings`: every field of its config, flat, by dotted name."""

    run: Path
    model: str
    arm: str
    seed: int
    settings: dict[str, Any]
    rows: list[Row]


@dataclass(frozen=True)
class Group:
    """Jobs that differ in nothing but the seed, in the order of their seeds. `settings`: the swept fields only."""

    model: str
    settings: tuple[tuple[str, Any], ...]
    arm: str
    jobs: tuple[Job, ...]


def by_model(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """Jobs of each evaluated model: pretrain, instruct, then others by name."""
    models = sorted({job.model for job in jobs}, key=lambda m: (MODELS.index(m) if m in MODELS else len(MODELS), m))
    return {model: [job for job in jobs if job.model == model] for model in models}


def tracks(jobs: Sequence[Job]) -> list[str]:
    """Tracks of the jobs' predictions, in the order of the benchmark."""
    return list(dict.fromkeys(row["track"] for job in jobs for row in job.rows))


def suite_of(jobs: Sequence[Job]) -> list[str]:
    """Those of the tracks that are benchmarks: `metrics.benchmarks` of all rows."""
    return benchmarks([row for job in jobs for row in job.rows])


def read_jobs(folder: Path) -> list[Job]:
    """Every evaluated model below a folder. Raises ValueError when there is none, or a job lacks its config."""
    jobs = []
    for scores in sorted(folder.rglob("evaluate/*/scores.json")):
        evaluated = scores.parent.parent
        if not (evaluated / "config.yaml").is_file():
            raise ValueError(f"{evaluated} has scores but no config.yaml; run `revision evaluate` of that run again")
        settings = settings_of(evaluated)
        jobs.append(
            Job(
                run=evaluated.parent,
                model=scores.parent.name,
                arm=arm_of(settings),
                seed=settings["seed"],
                settings=settings,
                rows=_read_rows(scores.with_name("predictions.jsonl")),
            )
        )
    if not jobs:
        raise ValueError(f"no evaluated run lies below {folder}; finish `revision evaluate` for at least one job first")
    return jobs


def settings_of(folder: Path) -> dict[str, Any]:
    """Every field of the configuration that a command has left in its folder, flat, by dotted name."""
    return _flat(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True))


def arm_of(settings: Mapping[str, Any]) -> str:
    """The arm of a job with these settings: its alignment, or `pairs`."""
    return str(PAIRS if settings["pretrain.input"] == PAIRS else settings["alignment.method"])


def swept_fields(jobs: Sequence[Job]) -> list[str]:
    """Fields that differ between the jobs of one model, beside arm and seed; of fields that move together, one.

    A field of the alignment is left out when the arm determines it (the noise of `c3`), any field when one already
    kept does (a warm-up that follows the number of steps; an encoder's name that follows its temperature): numbers are
    kept rather than names. A field outside the alignment stays even if each arm has it in one value, for then the arms
    are not comparable.
    """
    assert len({job.model for job in jobs}) == 1, "each model's jobs are compared on their own"
    later = ("instruct.",) if jobs[0].model == "pretrain" else ()  # what happens after stage 1 does not change it
    names = sorted({name for job in jobs for name in job.settings} - _SPOKEN_FOR)
    names = [name for name in names if not name.startswith((*_IRRELEVANT, *later))]
    columns = {name: [_canonical(job.settings.get(name)) for job in jobs] for name in names}
    # A run from before a field was there tells nothing about it. A key of an open mapping that is not there is at its
    # default, which is a value as well.
    told = {
        name: {_canonical(job.settings.get(name)) for job in jobs if name in job.settings or name.startswith(_OPEN)}
        for name in names
    }
    varied = [name for name in names if len(told[name]) > 1 and not name.endswith(_TRAINER_SEEDS)]
    varied.sort(key=lambda name: not all(is_number(job.settings.get(name)) for job in jobs))
    kept: list[str] = []
    for name in varied:
        causes = [columns[other] for other in kept]
        if name.startswith("alignment."):
            causes.append([job.arm for job in jobs])
        if not any(_determines(cause, columns[name]) for cause in causes):
            kept.append(name)
    return kept


def group_jobs(jobs: Sequence[Job], fields: Sequence[str]) -> list[Group]:
    """Jobs of one model grouped over seeds, in the order of settings and arms.

    Of two jobs that are alike in settings, arm and seed (the base point of two sweeps), the last counts.
    """
    members: dict[tuple[tuple[tuple[str, Any], ...], str], dict[int, Job]] = {}
    for job in jobs:
        settings = tuple((name, _hashable(job.settings.get(name))) for name in fields)
        members.setdefault((settings, job.arm), {})[job.seed] = job
    groups = [
        Group(jobs[0].model, settings, arm, tuple(by_seed[seed] for seed in sorted(by_seed)))
        for (settings, arm), by_seed in members.items()
    ]
    return sorted(groups, key=lambda group: ([value_order(value) for _, value in group.settings], arm_order(group.arm)))


def base_settings(jobs: Sequence[Job], fields: Sequence[str]) -> dict[str, Any]:
    """Settings that the others vary one at a time: those jobs' whose values are the commonest, taken together."""
    groups = group_jobs(jobs, fields)
    counts = Counter(setting for group in groups for setting in group.settings for _ in group.jobs)
    return dict(max((group.settings for group in groups), key=lambda settings: sum(counts[pair] for pair in settings)))


def value_order(value: Any) -> tuple[bool, float, str]:
    """Sorting key of the values of a setting: numbers first, by size."""
    return not is_number(value), value if is_number(value) else 0.0, str(value)


def arm_order(arm: str) -> tuple[int, str]:
    """Sorting key of arms."""
    place = len(ARMS) + 1 if arm == PAIRS else ARMS.index(arm) if arm in ARMS else len(ARMS)
    return place, arm


def estimate(group: Group, metric: Metric, *, row: str, track: str, resamples: int = 2000) -> Estimate | None:
    """A metric's mean over the seeds of a group with its interval over pictures and seeds; None without such rows."""
    found = _matrices([group], group_seeds(group), metric, row=row, track=track)
    if found is None:
        return None
    (values,), per = found
    return interval(values, per, resamples=resamples)


def seed_values(group: Group, metric: Metric, *, row: str, track: str) -> list[float]:
    """A metric's value in each job of a group."""
    found = _matrices([group], group_seeds(group), metric, row=row, track=track)
    if found is None:
        return []
    (values,), per = found
    whole = np.full(len(values), values.shape[1]) if per is None else per.sum(axis=1)
    return np.divide(values.sum(axis=1), whole, out=np.zeros(len(values)), where=whole != 0).tolist()


def difference(
    first: Group, second: Group, metric: Metric, *, row: str, track: str, resamples: int = 2000
) -> Estimate | None:
    """`first` minus `second`, paired by picture and by seed, over the seeds that both have; None where none is."""
    seeds = sorted(set(group_seeds(first)) & set(group_seeds(second)))
    found = _matrices([first, second], seeds, metric, row=row, track=track) if seeds else None
    if found is None:
        return None
    (ours, theirs), per = found
    return paired_difference(ours, theirs, per, resamples=resamples)


def estimate_mean(group: Group, metric: Metric, *, tracks: Sequence[str], resamples: int = 2000) -> Estimate | None:
    """As `estimate`, of questions: the mean over tracks, each of which counts alike; None where one lacks it."""
    found = [_matrices([group], group_seeds(group), metric, row="question", track=track) for track in tracks]
    parts = [(tops[0], per) for tops, per in filter(None, found)]
    return mean_of_parts(parts, resamples=resamples) if len(parts) == len(tracks) else None


def difference_mean(
    first: Group, second: Group, metric: Metric, *, tracks: Sequence[str], resamples: int = 2000
) -> Estimate | None:
    """As `difference`, of `estimate_mean`: paired by question and seed."""
    seeds = sorted(set(group_seeds(first)) & set(group_seeds(second)))
    found = [_matrices([first, second], seeds, metric, row="question", track=track) for track in tracks if seeds]
    parts = [(ours - theirs, per) for (ours, theirs), per in filter(None, found)]
    return mean_of_parts(parts, resamples=resamples) if len(parts) == len(tracks) else None


def resamples_of(
    groups: Sequence[Group], metric: Metric, *, row: str, track: str, resamples: int = 2000
) -> tuple[np.ndarray, np.ndarray] | None:
    """A metric of several groups on the same pictures, over the seeds that all of them have.

    Returns:
        Values, float64 [groups], and those of each resample of pictures and seeds, float64 [resamples, groups], which
        are paired; None without such rows, or without a seed in common.
    """
    seeds = sorted(set.intersection(*(set(group_seeds(group)) for group in groups)))
    found = _matrices(groups, seeds, metric, row=row, track=track) if seeds else None
    if found is None:
        return None
    tops, per = found
    values, draws = zip(*(resampled(top, per, resamples=resamples) for top in tops), strict=True)
    return np.array(values), np.stack(draws, axis=1)


def group_seeds(group: Group) -> list[int]:
    """Seeds of a group, ascending."""
    return [job.seed for job in group.jobs]


def is_number(value: Any) -> bool:
    """Whether a setting can stand on a numeric axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _matrices(
    groups: Sequence[Group], seeds: Sequence[int], metric: Metric, *, row: str, track: str
) -> tuple[list[np.ndarray], np.ndarray | None] | None:
    """Numerators float64 [seeds, n] of each group and their common denominators, units in one order throughout."""

    def picked_from(job: Job) -> list[Row]:
        """The rows of a job that have the metric, by id, so that jobs can be compared row by row."""
        units = [unit for unit in job.rows if unit["row"] == row and unit["track"] == track and metric.needs in unit]
        return sorted(units, key=lambda unit: unit["id"])

    jobs = [[job for job in group.jobs if job.seed in seeds] for group in groups]
    picked = [[picked_from(job) for job in members] for members in jobs]
    if not all(units for found in picked for units in found):  # a metric that some jobs were not asked for
        return None
    reference = [unit["id"] for unit in picked[0][0]]
    for members, found in zip(jobs, picked, strict=True):
        for job, units in zip(members, found, strict=True):
            if [unit["id"] for unit in units] != reference:
                raise ValueError(
                    f"{job.run} was evaluated on other {row}s of track {track} than {jobs[0][0].run}; "
                    "evaluate both with the same evaluate.* settings before comparing them"
                )
    arrays = [[metric.arrays(units) for units in members] for members in picked]
    tops = [np.stack([top for top, _ in members]) for members in arrays]
    bottoms = [[bottom for _, bottom in members if bottom is not None] for members in arrays]
    if not bottoms[0]:
        return tops, None
    per = np.stack(bottoms[0])
    if any(not np.array_equal(per, np.stack(other)) for other in bottoms[1:]):
        return None  # LLMs that cut a caption into other tokens: their numbers a token are of different units
    return tops, per


def _read_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _hashable(value: Any) -> Any:
    return value if is_number(value) or isinstance(value, str | bool) or value is None else _canonical(value)


def _determines(cause: Sequence[str], effect: Sequence[str]) -> bool:
    """Whether equal causes always come with equal effects."""
    seen: dict[str, str] = {}
    return all(seen.setdefault(a, b) == b for a, b in zip(cause, effect, strict=True))
