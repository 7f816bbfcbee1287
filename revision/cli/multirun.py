"""Sweeps: every job of `-m` is a process of its own, so that no job, not even a killed one, costs the others."""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from revision.cli.composition import ROOT, ConfigError, typed
from revision.cli.explaining import explain
from revision.cli.overrides import in_open_mapping
from revision.interrupts import Interrupted, signal_of
from revision.progress import say
from revision.runs import processes, rundir

TABLE_COMMANDS = ("run", "evaluate")  # those after which there are scores to compare
TRAINING_COMMANDS = ("run", "pretrain", "instruct")  # those after which there are losses to compare
# Overrides that have no part in a job's folder name: where it lies, and how much of it is done now.
NAMELESS = ("experiment", "name", "runs", "run.steps", "evaluate.models")
_NAMELESS_GROUPS = ("search.",)
TABLES = "tables"  # folder below `runs` of tables over several experiments
_LAUNCHERS = ("joblib", "submitit")  # packages that start jobs elsewhere, and raise where they lose one
LONGEST_NAME = 150  # characters; file systems allow 255 bytes


@dataclass(frozen=True)
class Outcome:
    """How one job of a sweep went. `sweep`: the folder of the sweep; `failure`: a sentence, or None.

    `runs` is the folder that the job's name starts from; a search, whose jobs need it not, has none.
    """

    sweep: Path
    name: str
    failure: str | None
    runs: Path = Path()


def sweep(hydra: Hydra, command: str, overrides: Sequence[str]) -> int:
    """Run every job of the sweep, then list those that failed and draw the table; returns the exit code.

    Raises:
        ConfigError: a job that does not compose; no job has been started then.
        ValueError: a launcher that cannot start jobs, or has lost one.
    """
    processes.refuse_ranks("a sweep")
    _refuse_one_name_for_all(overrides)
    try:
        with launching():
            batches = hydra.multirun(ROOT, Job(command), _whole(hydra, [*overrides, "hydra.mode=MULTIRUN"]))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(hydra, error)) from error
    if not isinstance(batches, list):
        return 0  # another sweeper reports its jobs itself
    outcomes = outcomes_of(batches)
    code = report(outcomes)
    folders = list(dict.fromkeys(outcome.sweep for outcome in outcomes))
    if command in TRAINING_COMMANDS:
        for folder in folders:
            draw_training(folder)
    if command in TABLE_COMMANDS:
        for folder in folders:
            draw_table(folder)
        draw_table_of_experiments(outcomes)
    return code


@contextmanager
def launching() -> Iterator[None]:
    """Around the start of jobs: what a launcher says of a job that it could not start, or has lost, as one sentence."""
    try:
        yield
    except RuntimeError as error:
        frames = traceback.walk_tb(error.__traceback__)
        if not any(str(frame.f_globals.get("__name__")).partition(".")[0] in _LAUNCHERS for frame, _ in frames):
            raise
        said = " ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip("- "))
        raise ValueError(
            f"the launcher did not bring all jobs to their ends ({said}); those that it has started elsewhere go on, "
            "and the same command later runs what is missing"
        ) from error


def _whole(hydra: Hydra, overrides: Sequence[str]) -> list[str]:
    """The experiment's own sweep and the overrides, which take the place of what it has for the same fields.

    Hydra itself takes a key of an open mapping, which has `++` by now, for another than that of the file, and would run
    every job of the one with every job of the other.
    """
    composed = hydra.compose_config(ROOT, list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False)
    sweeper = composed.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return list(overrides)
    given = {text.lstrip("+").partition("=")[0] for text in overrides}
    own = {str(name).lstrip("+"): value for name, value in (sweeper.get("params") or {}).items()}
    params = [f"{'++' * in_open_mapping(name)}{name}={value}" for name, value in own.items() if name not in given]
    return [*params, *overrides, "hydra.sweeper.params=null"]


def _refuse_one_name_for_all(overrides: Sequence[str]) -> None:
    """Experiments lie in folders of their own names; with one name for all, each would overwrite the one before."""
    fields = dict(text.lstrip("+").split("=", 1) for text in overrides if "=" in text)
    swept = fields.get("experiment", "")
    if "name" in fields and ("," in swept or swept.startswith(("glob(", "choice("))):
        raise ConfigError(
            f"name={fields['name']} would put every one of experiment={swept} into one folder; leave out the name, or "
            "give the experiments one by one."
        )


def outcomes_of(batches: Sequence[Sequence[JobReturn]]) -> list[Outcome]:
    """How the jobs that a launcher has run went."""
    return [job.return_value for batch in batches for job in batch if isinstance(job, JobReturn)]


def report(outcomes: Sequence[Outcome]) -> int:
    """List the jobs that failed; returns the exit code of all."""
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    for outcome in failed:
        say(f"failed: {outcome.name}: {outcome.failure}")
    say(f"{len(outcomes) - len(failed)} of {len(outcomes)} jobs finished")
    return 1 if failed else 0


def job_name(base: str, overrides: Sequence[str]) -> str:
    """The run name of one job: the sweep's own, and below it the job's overrides made safe for a file name."""
    named = {text.lstrip("+"): re.split("[=@]", text.lstrip("+"))[0] for text in overrides}
    kept = sorted(
        text for text, name in named.items() if name not in NAMELESS and not name.startswith(_NAMELESS_GROUPS)
    )
    written = ",".join(kept)
    part = re.sub(r"[^\w.=,+-]+", "-", written)
    if part != written:  # what else would become the same
        part = f"{part}-{hashlib.sha256(written.encode()).hexdigest()[:6]}"
    return f"{base}/{_short(part)}" if part else base


class Job:
    """The task function of a sweep: starts the command of one job and reports how it went. Launchers may pickle it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __call__(self, composed: DictConfig) -> Outcome:
        runs = Path(str(composed.runs))
        sweep_folder = runs / str(composed.name)
        name = job_name(str(composed.name), processes.job_overrides()[0])
        try:
            config = typed(composed)
        except ConfigError as error:
            return Outcome(sweep_folder, name, str(error), runs)
        config = replace(config, name=name)
        # `embed` finds out by itself, and by the records' content, which the mark does not know.
        if self.command != "embed" and rundir.is_finished(config, self.command):
            say(f"finished and unchanged: {rundir.folder(config, self.command)}")
            return Outcome(sweep_folder, name, None, runs)
        words = processes.command_line(self.command, processes.arguments_of(config))
        code, asked = processes.attend(words)
        if asked is not None and code == 0:
            raise Interrupted(asked, f"{asked.name}: job {name} has finished; the same command goes on with the next")
        if (left := signal_of(code)) is not None:
            raise Interrupted(left, f"{left.name}: job {name} has left; the same command goes on from there")
        failure = None if code == 0 else f"`{self.command}` {processes.ending(code)}"
        return Outcome(sweep_folder, name, failure, runs)


def draw_table(folder: Path) -> None:
    """The table over all jobs below a folder, where any has scores."""
    if _has_scores(folder):
        from revision.evaluation.table import collect

        collect(folder)
        say(f"table of all jobs: {folder / 'table.md'}, {folder / 'table.csv'}")


def draw_training(folder: Path) -> None:
    """The table and the curves of all training stages below a folder, where any is finished."""
    if any(folder.rglob("finished.json")):
        from revision.evaluation.training_table import collect_training

        if collect_training(folder):
            say(f"losses and rates of all jobs: {folder / 'training.csv'}, {folder / 'training.png'}")


def draw_table_of_experiments(outcomes: Sequence[Outcome]) -> None:
    """One table over the jobs of a sweep over experiments, each of which has a folder of its own."""
    if len({outcome.sweep for outcome in outcomes}) < 2:
        return
    root = outcomes[0].runs
    runs = [run for outcome in outcomes if _has_scores(run := root / outcome.name)]
    names = dict.fromkeys(run.relative_to(root).parts[0] for run in runs)
    if len(names) < 2:
        return
    from revision.evaluation.table import collect_experiments

    out = root / TABLES / _short("+".join(names))
    try:
        collect_experiments(runs, root, out)
    except ValueError as error:  # the jobs are done all the same
        say(f"no table over these experiments: {error}")
    else:
        say(f"table of all experiments: {out / 'table.md'}, {out / 'table.csv'}")


def _has_scores(folder: Path) -> bool:
    return any(folder.rglob("evaluate/*/scores.json"))


def _short(name: str) -> str:
    """A name that a folder can have: a long one is cut, and told apart by its hash."""
    return (
        name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )
