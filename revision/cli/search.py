"""`-m` with `search.trials`: a sweep whose jobs Optuna proposes, each by what the others scored.

What is swept on the command line, or under `hydra.sweeper.params`, is the space: `a=1,2,3` a choice, `a=range(1,9)` and
`a=interval(0.1,0.9)` numbers, `a=tag(log,interval(1e-5,1e-2))` numbers on a logarithmic scale. `search.json` beside the
jobs lists what has been tried; the same command later tries again what failed, and goes on to `search.trials`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from revision import locks
from revision.cli.composition import ROOT, ConfigError, typed
from revision.cli.explaining import explain
from revision.cli.multirun import Job, Outcome, draw_table, draw_training, launching, outcomes_of, report
from revision.cli.proposals import Choice, Point, Space, Span, all_points, contains, propose, require_optuna
from revision.fields import nearest
from revision.progress import say
from revision.runs import processes
from revision.runs.rundir import write_json
from revision.schema import MODEL_STEPS, Config

JOURNAL = "search.json"


@dataclass
class Trial:
    """One job of a search.

    Attributes:
        point: what was proposed.
        fixed: the other overrides of the job.
        job: its run name; None until it has been started.
        failure: a sentence; None where it finished. `not finished` until then.
    """

    point: Point
    fixed: list[str]
    job: str | None = None
    failure: str | None = "not finished"


def search(hydra: Hydra, command: str, overrides: Sequence[str], composed: DictConfig) -> int:
    """Run trials until there are `search.trials` of them, then say which was best; returns the exit code.

    Raises:
        ConfigError: a job that does not compose, or a metric that none of the jobs would leave.
        ValueError: Optuna is not installed, or nothing is swept.
    """
    processes.refuse_ranks("a search")
    config = typed(composed)
    assert config.search.trials is not None, "the caller has seen to it"
    require_optuna(config.search.trials)
    launch = _Launch(hydra, command, overrides)
    space, fixed = _split(launch.swept())
    if not space:
        raise ValueError(
            f"search.trials = {config.search.trials}: nothing is swept; write a=1,2 or a=interval(0.1,0.9)."
        )
    _check_metric(config, command, {name.partition(".")[0] for name in space})
    folder = Path(config.runs) / config.name
    with locks.held(folder / ".search.lock", f"the search in {folder}", wait=False):
        return _search(config, launch, space, fixed, folder)


def _check_metric(config: Config, command: str, swept: set[str]) -> None:
    """Hold `search.metric` against what a job scores: it is read when the first one has trained."""
    metric, models, steps = config.search.metric, config.evaluate.models, config.run.steps
    model, _, path = metric.partition(".")
    if not model or not all(path.split(".")):
        rule = "<model>.<path in its scores.json>, such as instruct.mean.accuracy"
        raise ConfigError(f"search.metric = {metric}: must be {rule}.")
    if command not in ("run", "evaluate"):
        raise ConfigError(
            f"search.trials = {config.search.trials}: `{command}` leaves no scores to search by; give the search to "
            "`run` or `evaluate`."
        )
    if {"experiment", "evaluate", "run"} & swept:
        return  # what a job scores is known when it is composed
    if command == "run" and "evaluate" not in steps:
        raise ConfigError(f"run.steps = {steps}: must have evaluate among them, whose scores search.metric reads.")
    scored = [name for name in models if name not in MODEL_STEPS or name in steps]
    if model not in scored and all(name in MODEL_STEPS for name in scored):
        raise ConfigError(
            f"search.metric = {metric}: must begin with a model that is scored, which {model} is not "
            f"(evaluate.models = {models}, run.steps = {steps}){nearest(model, scored)}."
        )


def _search(config: Config, launch: _Launch, space: Space, fixed: list[str], folder: Path) -> int:
    assert config.search.trials is not None
    trials = read_journal(folder)
    ours = [trial for trial in trials if trial.fixed == fixed and contains(space, trial.point)]
    _settle(config, ours)
    queue = [trial for trial in ours if trial.failure is not None]  # of an earlier call
    while queue or len(ours) < config.search.trials:
        if not queue:
            queue = [Trial(point, fixed) for point in _proposals(config, space, ours)]
            if not queue:
                finite = all_points(space) is not None
                say("nothing new to try: " + ("every value of the space has been" if finite else "none was proposed"))
                break
            trials += queue
            ours += queue
        now, queue = queue[: config.search.at_once], queue[config.search.at_once :]
        _write_journal(folder, trials)
        for trial, outcome in zip(now, launch.jobs([trial.point for trial in now], fixed), strict=True):
            trial.job, trial.failure = outcome.name, outcome.failure
        _settle(config, now)
        _write_journal(folder, trials)
    return _conclude(config, folder, ours)


def read_journal(folder: Path) -> list[Trial]:
    """The trials that a sweep's folder knows.

    Raises:
        ValueError: the file is not one that a search wrote.
    """
    path = folder / JOURNAL
    if not path.is_file():
        return []
    try:
        return [Trial(**trial) for trial in json.loads(path.read_text(encoding="utf-8"))["trials"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not what a search writes ({error}); delete it to begin anew") from error


def score_of(config: Config, job: str) -> float:
    """The metric of a finished job.

    Raises:
        ValueError: it has no such score.
    """
    model, _, path = config.search.metric.partition(".")
    file = Path(config.runs) / job / "evaluate" / model / "scores.json"
    if not file.is_file():
        raise ValueError(f"search.metric = {config.search.metric}: {file} is not there")
    found: Any = json.loads(file.read_text(encoding="utf-8"))
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            raise ValueError(f"search.metric = {config.search.metric}: {file} has no '{part}' there")
        found = found[part]
    value = found.get("value") if isinstance(found, dict) else found
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"search.metric = {config.search.metric}: it is no number in {file}")
    return float(value)


class _Launch:
    """Starts jobs as Hydra's own sweeper would, through the launcher that is chosen."""

    def __init__(self, hydra: Hydra, command: str, overrides: Sequence[str]) -> None:
        self._hydra = hydra
        try:
            self._master = hydra.compose_config(ROOT, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(self._master))
            self._launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=Job(command), config=self._master
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(hydra, error)) from error
        self._started = 0
        self._keys: dict[str, str] = {}  # names to how Hydra wants them: new keys of open mappings with `++`

    def swept(self) -> list[Override]:
        """All overrides, those of the experiment's sweep first; of two for one field the last counts."""
        params = [f"{name}={value}" for name, value in (self._master.hydra.sweeper.get("params") or {}).items()]
        parser = OverridesParser.create(config_loader=self._hydra.config_loader)
        parsed = parser.parse_overrides([*params, *self._master.hydra.overrides.task])
        self._keys = {_name(override): override.get_key_element() for override in parsed}
        return list({_name(override): override for override in parsed}.values())

    def jobs(self, points: Sequence[Point], fixed: Sequence[str]) -> list[Outcome]:
        """Runs some jobs to their ends, in order."""
        batch = [[*fixed, *(f"{self._keys[name]}={value}" for name, value in point.items())] for point in points]
        try:
            with launching():
                returned = self._launcher.launch(batch, initial_job_idx=self._started)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(self._hydra, error)) from error
        self._started += len(batch)
        return outcomes_of([returned])


def _split(overrides: Sequence[Override]) -> tuple[Space, list[str]]:
    """What varies, and the overrides that do not; those of the search itself are no part of a job."""
    space: dict[str, Choice | Span] = {}
    fixed = []
    for override in overrides:
        name = _name(override)
        if override.is_sweep_override():
            space[name] = _dimension(override)
        elif not name.startswith("search."):
            fixed.append(f"{override.get_key_element()}={override.get_value_element_as_str()}")
    return space, fixed


def _name(override: Override) -> str:
    return str(override.get_key_element()).lstrip("+")


def _dimension(override: Override) -> Choice | Span:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None and sweep.end is not None
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        return Span(sweep.start, sweep.end, log="log" in sweep.tags, whole=whole)
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        whole = all(isinstance(value, int) for value in values)
        return Span(min(values), max(values), step=abs(float(sweep.step)), log=False, whole=whole)
    return Choice(tuple(override.sweep_string_iterator()))


def _proposals(config: Config, space: Space, ours: Sequence[Trial]) -> list[Point]:
    search = config.search
    assert search.trials is not None
    return propose(
        space,
        [(trial.point, score_of(config, str(trial.job))) for trial in ours if trial.failure is None],
        count=min(search.at_once, search.trials - len(ours)),
        taken=[trial.point for trial in ours],
        maximize=search.direction.value == "maximize",
        sampler=search.sampler.value,
        seed=search.seed,
    )


def _settle(config: Config, trials: Sequence[Trial]) -> None:
    """A job that left no score has failed, whatever its exit code."""
    for trial in trials:
        if trial.job is not None and trial.failure is None:
            try:
                score_of(config, trial.job)
            except ValueError as error:
                trial.failure = str(error)


def _write_journal(folder: Path, trials: Sequence[Trial]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JOURNAL, {"trials": [asdict(trial) for trial in trials]})


def _conclude(config: Config, folder: Path, trials: Sequence[Trial]) -> int:
    finished = [(score_of(config, str(trial.job)), trial) for trial in trials if trial.failure is None]
    if finished:
        choose = max if config.search.direction.value == "maximize" else min
        score, best = choose(finished, key=lambda pair: pair[0])
        point = " ".join(f"{name}={value}" for name, value in best.point.items())
        say(f"best {config.search.metric} of {len(finished)} jobs: {score:.4g} with {point} ({best.job})")
    draw_training(folder)
    draw_table(folder)
    return report([Outcome(folder, trial.job or "not started", trial.failure) for trial in trials])
