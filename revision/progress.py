"""Progress bars and lines in the terminal, the same for every command."""

from __future__ import annotations

import time
from typing import Any

from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 30.0


class RateColumn(ProgressColumn):
    """Units a second, from the recent past of the task."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """One cell; empty until there is a rate."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {self._unit}/s", style="progress.data.speed")


class _ProgressLines(Progress):
    """For a log file, where a bar cannot be redrawn: a line each `LINE_SECONDS`."""

    _next = 0.0

    def start(self) -> None:
        """Starts the clock of the lines too."""
        self._next = time.monotonic() + LINE_SECONDS
        super().start()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """As rich does, with a line now and then."""
        super().advance(task_id, advance)
        self._line(self._tasks[task_id])

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As rich does, with a line now and then."""
        super().update(task_id, **changes)
        self._line(self._tasks[task_id])

    def _line(self, task: Task) -> None:
        if self.disable or task.finished or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LINE_SECONDS
        of = "" if task.total is None else f" of {task.total:,.0f}"
        speed = task.speed
        rate = "" if speed is None else f", {speed:,.0f}/s" if speed >= 10 else f", {speed:.2g}/s"
        left = "" if task.time_remaining is None else f", {task.time_remaining / 60:.1f} minutes left"
        say(f"{task.description}: {task.completed:,.0f}{of}{rate}{left}")


def progress_bar(unit: str, *, visible: bool = True) -> Progress:
    """A bar with count, rate, elapsed and remaining time; what is counted is called `unit` ("texts").

    Where the output is no terminal, lines now and then take its place.
    """
    return (Progress if get_console().is_terminal else _ProgressLines)(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not visible,
    )


def hide_bars_of_transformers() -> None:
    """For commands that talk to a person: "Loading weights" between their lines helps nobody."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def counted(number: int, one: str, many: str) -> str:
    """`1 process`, `2 processes`."""
    return f"{number:,} {one if number == 1 else many}"


def say(line: str) -> None:
    """Prints one line for the user as it is: neither wrapped nor read as markup."""
    get_console().print(line, soft_wrap=True, markup=False, highlight=False)
