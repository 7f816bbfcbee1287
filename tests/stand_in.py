"""A stand-in for `python -m revision`: the real command line, whose steps only note that they ran.

`python stand_in.py COMMAND ...` appends one JSON line per step to $STAND_IN_LOG, and fails in the step whose
"name/command" matches $STAND_IN_FAIL. So `run` and sweeps are tested through real processes in a second each.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from omegaconf import OmegaConf

from revision import cli
from revision.runs import processes, rundir
from revision.schema import MODEL_STEPS, STEPS, Config


def stand_in_line(command: str, arguments: Sequence[str]) -> list[str]:
    """Takes the place of `processes.command_line`."""
    return [sys.executable, str(Path(__file__)), command, *arguments]


def main(after: Mapping[str, Callable[[Config], None]] | None = None) -> int:
    """The command line with steps that only note that they ran; `after` is called by a step before it finishes."""
    after = after or {}
    for step in STEPS:
        sys.modules[f"revision.commands.{step}"] = _step(step, after.get(step))
    return cli.main()


def _step(name: str, after: Callable[[Config], None] | None) -> ModuleType:
    def run(config: Config) -> None:
        rundir.start(config, name)
        line = {"step": name, "config": OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)}
        with Path(os.environ["STAND_IN_LOG"]).open("a") as log:
            log.write(json.dumps(line) + "\n")
        failing = os.environ.get("STAND_IN_FAIL")
        if failing and re.fullmatch(failing, f"{config.name}/{name}"):
            raise ValueError("told to fail.")
        for output in rundir._shared_outputs(config, name):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.touch()
        if name in MODEL_STEPS:
            (rundir.folder(config, name) / "model").mkdir(exist_ok=True)
        if after is not None:
            after(config)
        rundir.finish(config, name)

    module = ModuleType(f"revision.commands.{name}")
    vars(module)["run"] = run
    return module


if __name__ == "__main__":
    vars(processes)["command_line"] = stand_in_line
    sys.exit(main())
