"""Child processes: a command, or a launcher of several, as a process of its own with exactly this configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from revision.interrupts import WATCHED
from revision.schema import MODEL_STEPS, Config, EngineKind

# Commands that share their work among the processes of a launcher.
LAUNCHED = ("embed", *MODEL_STEPS)

# Hydra's own settings that decide where and how often a job is started: a job does not pass them on.
_STAY_BEHIND = ("hydra.mode=", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
_SECONDS_TO_SAVE = 600  # that a launcher gives processes to save and leave
# What torchrun needs besides: it would die from SIGUSR1 in place of passing it on, and kill after 30 s.
_TO_LEAVE_WELL = {
    "signals_to_handle": "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "shutdown_timeout": f"--shutdown-timeout={_SECONDS_TO_SAVE}",
}


def start(words: Sequence[str]) -> int:
    """Run a program to its end and return its exit code, as `attend` does."""
    return attend(words)[0]


def attend(words: Sequence[str]) -> tuple[int, signal.Signals | None]:
    """Run a program to its end.

    SIGTERM and SIGUSR1 are passed on to it.

    Returns:
        Its exit code, negative for a signal; where it ended in consequence of one that was passed on, 128 and the
        signal's number, whatever a launcher between made of it. And the first signal that was passed on, which a
        program that was nearly done may have ended well in spite of: whoever has more to start must not.
    """
    child = subprocess.Popen(words)
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        """Hands a signal on to the child."""
        passed.append(number)
        child.send_signal(number)

    before = {one: signal.signal(one, pass_on) for one in WATCHED}
    try:
        code = child.wait()
        asked = signal.Signals(passed[0]) if passed else None
        return (128 + asked if asked is not None and code != 0 else code), asked
    except KeyboardInterrupt:
        child.wait()  # the terminal has interrupted it as well: let it put its files in order
        raise
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def ending(code: int) -> str:
    """How a process with a non-zero exit code ended, in words that follow its name."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def command_line(command: str, arguments: Sequence[str]) -> list[str]:
    """The words that start `revision COMMAND` in this environment."""
    return [sys.executable, "-m", "revision", command, *arguments]


def arguments_of(config: Config) -> list[str]:
    """Arguments that give a child of the running job exactly `config`: the job's overrides and its resolved name."""
    job = HydraConfig.get()
    task, settings = job_overrides()
    own = [text for text in task if not text.startswith("name=")]
    hydra = [text for text in settings if not text.lstrip("+~").startswith(_STAY_BEHIND)]
    folders = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    options = [word for folder in folders for word in ("--config-dir", folder)]
    return [*own, *hydra, f"name='{config.name}'", "hydra.mode=RUN", *options]


def job_overrides() -> tuple[list[str], list[str]]:
    """The overrides of the running job as they were written, its own and those of Hydra's settings."""
    # Read through the config, `${...}` in an override would arrive resolved.
    written = OmegaConf.to_container(HydraConfig.get().overrides, resolve=False)
    assert isinstance(written, dict)
    return written["task"], written["hydra"]


def needs_launcher(config: Config, command: str) -> bool:
    """Whether `command` runs on an engine or on several processes, and no launcher has started them yet."""
    if command not in LAUNCHED or "RANK" in os.environ:
        return False
    engine = config.engine
    # The engines of training want a launcher for one process too.
    return engine.processes > 1 or (command in MODEL_STEPS and engine.kind is not EngineKind.ddp)


def refuse_ranks(what: str) -> None:
    """Hold that this is no rank of a launcher, for what starts processes of its own.

    Raises:
        ValueError: every rank would do all the work.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ValueError(
            f"{what} was started on {world} processes, each of which would do all of it: start it plainly, "
            f"and set engine.processes={world} for the steps that embed and train."
        )


def launcher_line(config: Config, command: str, arguments: Sequence[str]) -> list[str]:
    """The words that start `command` once on each process of `engine.processes`, on this machine."""
    from torch.distributed.run import get_args_parser

    launcher = [sys.executable, "-m", "revision.runs.launching", "--standalone"]
    known = vars(get_args_parser().parse_args(["script"]))  # the options are younger than the oldest torch we take
    launcher += [option for name, option in _TO_LEAVE_WELL.items() if name in known]
    return [*launcher, f"--nproc_per_node={config.engine.processes}", "-m", "revision", command, *arguments]
