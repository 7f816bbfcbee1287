"""`revision COMMAND [overrides]`: the command line over every command of the pipeline.

A mistake in the configuration is one sentence and exit code 2, before data or a device is touched; any other mistake of
the user's is one sentence and exit code 1. A training command that a signal made save and leave ends with 128 and the
signal's number (143 for SIGTERM). REVISION_TRACEBACK=1 shows where a mistake arose. Nothing heavy is imported here,
so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import ast
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from revision import __version__
from revision.commands import COMMANDS
from revision.interrupts import Interrupted
from revision.runs.launching import say_once

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

# What a word that is no override names, for the commands that are about one file or folder.
NAMED = {"verify": "verify.path", "chat": "chat.image"}
USAGE = """\
usage: revision COMMAND [field=value ...] [-m] [--cfg job] [--help]
       python -m revision COMMAND ...
       accelerate launch ... -m revision COMMAND ...
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _answer(words)
        sys.stdout.flush()  # here, where it is known what to do when nobody reads on
        return code
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 128 + signal.SIGPIPE  # as a shell's own tools end when `head` has seen enough
    except ValueError as error:
        if os.environ.get("REVISION_TRACEBACK") == "1":
            raise
        say_once(str(error))
        return _exit_code(error)
    except Interrupted as stop:
        if str(stop):  # of several processes, one speaks
            sys.stderr.write(f"revision: {stop}\n")
        return stop.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("revision: interrupted\n")
        return 130


def _answer(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"revision {__version__}\n")
        return 0
    return _run(words[0], words[1:])


def _reader_has_left() -> bool:
    """Whether standard output is a pipe that nobody reads; it then goes nowhere, or Python would fail on it again."""
    left = select.poll()
    try:
        left.register(sys.stdout.fileno(), 0)
    except OSError:  # no file, as where a notebook has taken its place
        return False
    if not left.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class _Parser(argparse.ArgumentParser):
    """Raises instead of ending the process, so that a mistake here is told as all others are."""

    def error(self, message: str) -> NoReturn:
        """argparse's own leaves with a usage page; ours is one sentence."""
        from revision.cli.composition import ConfigError

        raise ConfigError(f"{self.prog}: {message}; see `{self.prog} --help`.")


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"revision {command}", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("overrides", nargs="*", help="field=value, group=option; for a sweep several values with commas between")
    add("--help", "-h", action="store_true", help="what the command does, groups and fields")
    add("--cfg", "-c", choices=["job", "hydra", "all"], help="show the composed configuration instead of running")
    add("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    add("--package", "-p", help="with --cfg: show this part only")
    add("--multirun", "-m", action="store_true", help="one job for each combination of values")
    add("--config-dir", "-cd", help="a folder with config groups of your own")
    add("--info", "-i", const="all", nargs="?", choices=["all", "config", "defaults", "defaults-tree", "plugins",
        "searchpath"], help="how the configuration came about")  # fmt: skip
    add("--hydra-help", action="store_true", help="Hydra's own settings")
    return parser


def _run(command: str, words: list[str]) -> int:
    from revision.cli.composition import ConfigError, open_hydra

    if command not in COMMANDS:
        from revision.fields import nearest

        raise ConfigError(
            f"no command is named '{command}'{nearest(command, COMMANDS)}; there are {', '.join(COMMANDS)}."
        )
    options = _parser(command).parse_intermixed_args(words)
    options.overrides = _with_names(command, options.overrides)
    with open_hydra(command, options.config_dir) as hydra:
        return _dispatch(hydra, command, words, options)


def _with_names(command: str, words: list[str]) -> list[str]:
    """The one word that is no override as one: `runs/nano` as `verify.path=runs/nano`.

    A word with `=` that is a file or folder is such a word too, as folders of a sweep's jobs are.

    Raises:
        ConfigError: there are two of them.
    """
    from revision.cli.composition import ConfigError
    from revision.cli.quoting import written

    bare = [word for word in words if "=" not in word or os.path.exists(word)] if command in NAMED else []
    if len(bare) > 1:
        raise ConfigError(f"{NAMED[command]} is one path: '{bare[0]}' or '{bare[1]}'?")
    return [f"{NAMED[command]}={written(word)}" if word in bare else word for word in words]


def _dispatch(hydra: Hydra, command: str, words: list[str], options: argparse.Namespace) -> int:
    """Show the configuration, sweep, start a launcher, or run the command here."""
    from revision.cli import multirun
    from revision.cli.composition import ROOT, asks_for_sweep, compose, typed
    from revision.cli.overrides import check_overrides, refuse_intervals, refuse_sweeps
    from revision.cli.unread import refuse_unread
    from revision.runs import processes

    overrides = check_overrides(hydra, options.overrides)
    if options.help or options.cfg or options.info or options.hydra_help:
        refuse_sweeps(overrides, shown=True)
        compose(hydra, overrides)
        _show(hydra, command, overrides, options)
        return 0
    if options.multirun or asks_for_sweep(hydra, overrides):
        composed = compose(hydra, overrides, multirun=True)
        refuse_unread(hydra, overrides, composed, multirun=True)
        if composed.search.trials is not None:
            from revision.cli.search import search

            return search(hydra, command, overrides, composed)
        refuse_intervals(overrides)
        return multirun.sweep(hydra, command, overrides)
    refuse_sweeps(overrides)
    composed = compose(hydra, overrides)
    config = typed(composed)
    refuse_unread(hydra, overrides, composed)
    if processes.needs_launcher(config, command):
        return processes.start(processes.launcher_line(config, command, words))
    failure = hydra.run(ROOT, _Task(command), overrides).return_value
    if failure is not None:
        raise failure
    return 0


class _Task:
    """The task function: hands the typed configuration to the command. A sentence for the user comes back as a value,
    since Hydra would otherwise add lines of its own."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __call__(self, composed: DictConfig) -> ValueError | None:
        from revision.cli.composition import typed

        try:
            import_module(f"revision.commands.{self.command}").run(typed(composed))
        except ValueError as error:
            return error
        return None


def _show(hydra: Hydra, command: str, overrides: list[str], options: argparse.Namespace) -> None:
    from revision.cli.composition import ROOT, ConfigError, compose, typed
    from revision.cli.helptext import fields_help

    options.overrides = overrides
    if options.help:
        named = f"[{NAMED[command]}] " if command in NAMED else ""
        sys.stdout.write(f"usage: revision {command} {named}[field=value ...] [options]\n\n{_docstring(command)}\n\n")
        try:
            sys.stdout.write(fields_help(typed(compose(hydra, overrides)), command) + "\n")
        except ConfigError as error:  # help is for those who have not got everything right yet
            sys.stdout.write(f"Its fields cannot be shown: {error}\n\n")
        hydra.app_help(ROOT, _parser(command), options)
    elif options.hydra_help:
        hydra.hydra_help(None, _parser(command), options)
    elif options.info:
        hydra.show_info(options.info, ROOT, overrides)
    else:
        hydra.show_cfg(ROOT, overrides, options.cfg, options.package, options.resolve)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {' '.join(_docstring(name).split(chr(10) * 2)[0].split())}" for name in COMMANDS]
    return "\n".join([USAGE, "commands:", *lines, "", "`revision COMMAND --help` shows its groups and fields.\n"])


def _docstring(command: str) -> str:
    """The help text of a command, read from its file: importing all commands would take longer than showing it."""
    file = Path(__file__).parent.parent / "commands" / f"{command}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert text is not None, f"{file} has no docstring"
    return text


def _exit_code(error: ValueError) -> int:
    from revision.cli.composition import ConfigError

    return 2 if isinstance(error, ConfigError) else 1
