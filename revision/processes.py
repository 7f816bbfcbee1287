"""Child processes: a command, or a launcher of several, as a process of its own with exactly this configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from revision.schema import MODEL_STEPS, Config

# Commands that share their work among the processes of a launcher.
LAUNCHED = ("embed", *MODEL_STEPS)

# Hydra's own settings that decide where and how often a job is started: a job does not pass them on.
_STAY_BEHIND = ("hydra.mode=", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")


def start(words: Sequence[str]) -> int:
    """Run a program to its end and return its exit code, negative for a signal; SIGTERM is passed on to it."""
    child = subprocess.Popen(words)
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.wait()  # the terminal has interrupted it as well: let it put its files in order
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


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
    """Whether `command` is to run on several processes and no launcher has started them yet."""
    return command in LAUNCHED and config.engine.processes > 1 and "RANK" not in os.environ


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
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc_per_node={config.engine.processes}", "-m", "revision", command, *arguments]
