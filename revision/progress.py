"""Progress bars and lines in the terminal, the same for every command."""

from __future__ import annotations

from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Units a second, from the recent past of the task."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """One cell; empty until there is a rate."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {self._unit}/s", style="progress.data.speed")


def progress_bar(unit: str, *, visible: bool = True) -> Progress:
    """A bar with count, rate, elapsed and remaining time; what is counted is called `unit` ("texts")."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not visible,
    )


def say(line: str) -> None:
    """Prints one line for the user as it is: neither wrapped nor read as markup."""
    get_console().print(line, soft_wrap=True, markup=False, highlight=False)
