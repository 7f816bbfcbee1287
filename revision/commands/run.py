"""Run the steps of an experiment in order, each as a process of its own; finished and unchanged ones are skipped.

Recipes that the corpus needs (`data.needs`) come first, then that of its benchmarks and its own, then `run.steps`. A
stage that reads texts has `align` before it, also where the steps leave that out. A step that fails ends the run; the
same command continues it.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from revision.schema import Config


def run(config: Config) -> None:
    """Start what is not finished yet.

    Raises:
        ValueError: a launcher started this, a recipe is not there, or it or a step failed; the sentence says which.
        Interrupted: a signal asked the running step to leave.
    """
    from rich import get_console

    from revision.interrupts import Interrupted, signal_of
    from revision.progress import say
    from revision.runs import processes, rundir

    processes.refuse_ranks("`run`")
    if _make_records(config):
        for step in config.run.steps:  # at once, so that a run that is killed before they are done again knows it too
            rundir.reopen(config, step)
    arguments = processes.arguments_of(config)
    steps = _steps(config)
    for place, step in enumerate(steps, start=1):
        get_console().rule(f"{step} ({place} of {len(steps)})", align="left")
        if rundir.is_finished(config, step):
            lost = _lost(config, step, steps[place:])
            if lost is None:
                say(f"finished and unchanged: {rundir.folder(config, step)}")
                continue
            say(f"finished, but {lost}: made again")
        started = time.monotonic()
        code, asked = processes.attend(processes.command_line(step, arguments))
        if (left := signal_of(code)) is not None:
            raise Interrupted(left, f"{left.name}: step '{step}' has left; the same command goes on from there")
        if code != 0:
            rest = steps[place:]
            after = f"; {', '.join(rest)} not started" if rest else ""
            raise ValueError(
                f"step '{step}' {processes.ending(code)}{after}: mend the cause above and give the same command again."
            )
        say(f"{step} took {_duration(time.monotonic() - started)}")
        if asked is not None and place < len(steps):
            raise Interrupted(
                asked, f"{asked.name}: step '{step}' has finished; the same command goes on with the next"
            )
    get_console().rule("done", align="left")
    for step in steps:
        say(f"{step:>10}: {rundir.folder(config, step)}")


def _steps(config: Config) -> list[str]:
    """`run.steps`, with `align` before the first stage that reads its alignment, unless it comes before that anyway."""
    from revision.runs import rundir

    steps = config.run.steps
    readers = [place for place, step in enumerate(steps) if rundir.reads_alignment(config, step)]
    if not readers or "align" in steps[: readers[0]]:
        return steps
    rest = [step for step in steps[readers[0] :] if step != "align"]
    return [*steps[: readers[0]], "align", *rest]


def _lost(config: Config, step: str, later: Sequence[str]) -> str | None:
    """Why what a finished step has made is of no use to an unfinished one after it; None: it is, or none needs it.

    A model may be deleted once what reads it is finished: of a sweep, scores are kept.
    """
    from revision.runs import rundir

    reader = rundir.waiting(config, step, later)
    if reader is None:
        return None
    if step == "align":
        return f"its embeddings are others now and {reader} reads it" if _is_of_other_stores(config) else None
    return None if (rundir.folder(config, step) / "model").is_dir() else f"its model is gone and {reader} reads it"


def _is_of_other_stores(config: Config) -> bool:
    """Whether texts or pictures have been embedded again since the alignment was fitted, by another run perhaps."""
    from revision.assembly import open_sides
    from revision.runs import rundir

    facts = json.loads((rundir.folder(config, "align") / rundir.FINISHED).read_text())["facts"]
    sides = zip(("text", "image"), open_sides(config), strict=True)
    return any(facts[name]["fingerprint"] != side.fingerprint() for name, side in sides)


def _make_records(config: Config) -> bool:
    """Run the recipes of the corpus; a recipe knows itself when its records are there and skips then.

    Returns:
        Whether records that were there before are others now, so that what was made of them is out of date.
    """
    from rich import get_console

    from revision import locks
    from revision.interrupts import Interrupted, signal_of
    from revision.progress import say
    from revision.runs import processes

    data = config.data
    lines = [("data.needs", shlex.split(line)) for line in data.needs]
    if data.benchmark_recipe is not None and "evaluate" in config.run.steps:
        lines.append(("data.benchmark_recipe", shlex.split(data.benchmark_recipe)))
    if data.recipe is not None:
        lines.append(("data.recipe", [data.recipe, "--out", data.folder, *data.recipe_options]))
    found = [(recipe, [str(_recipe_file(field, recipe)), *words]) for field, (recipe, *words) in lines]
    if not found:
        return False
    folders = sorted({Path(words[words.index("--out") + 1]) for _, words in found if "--out" in words[:-1]})
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locks.held(folder.with_name(f".{folder.name}.lock"), f"the corpus {folder}", wait=True))
        before = _digests(folders)
        for place, (recipe, words) in enumerate(found, start=1):
            get_console().rule(f"records of {data.name} ({place} of {len(found)})", align="left")
            code = processes.start([sys.executable, *words])
            if (left := signal_of(code)) is not None:
                raise Interrupted(left, f"{left.name}: recipe '{recipe}' has left; the same command begins it anew")
            if code != 0:
                raise ValueError(f"recipe '{recipe}' {processes.ending(code)}: mend the cause above; no step started.")
        after = _digests(folders)
    changed = sorted(name for name in before if before[name] != after.get(name))
    if changed:
        say(f"{', '.join(changed)} are others than before: every step is done again")
    return bool(changed)


def _digests(folders: Sequence[Path]) -> dict[str, str]:
    """sha256 of each file of records in some corpora."""
    from revision.files import file_sha256

    return {str(file): file_sha256(file) for folder in folders for file in sorted(folder.glob("*.jsonl"))}


def _recipe_file(field: str, recipe: str) -> Path:
    """The recipe as a path from here, or else among the recipes that come with the package."""
    from revision.shipped import shipped

    for file in (Path(recipe), shipped(recipe)):
        if file.is_file():
            return file
    raise ValueError(f"{field} = {recipe}: no such file, neither here nor at {shipped(recipe)}; give a Python file.")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
