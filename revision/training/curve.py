"""The live bar and the log of a training run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from revision import folders
from revision.costs.watch import Watch
from revision.files import write_text

_LOGGED = ("loss", "learning_rate", "grad_norm")
_WATCHED = ("samples_per_second", "tokens_per_second", "flops_per_second", "mfu", "data_wait", "memory_gib")
_WORTH_SAYING = 0.02  # share of the time


class CurveCallback(TrainerCallback):
    """Shows loss and rates on one line, and appends each logged step to a JSON-lines file.

    Args:
        path: of the log. A resumed run goes on in it, from the step of its checkpoint.
        watch: knows the rates; the Trainer adds them to what it logs, so that trackers get the same.
        visible: whether this process shows the bar and writes the log.
        fail: told in a sentence that the log cannot be written. Only one process writes it, and to raise there would
            leave the others waiting.
    """

    def __init__(self, path: Path, *, watch: Watch, visible: bool, fail: Callable[[str], object]) -> None:
        self.path, self.watch, self.visible, self._fail = path, watch, visible, fail
        self.rows: list[dict[str, float]] = []
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            disable=not visible,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts bar, clock and log."""
        self.rows = [row for row in self._written() if row["step"] <= state.global_step]
        if self.visible:
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            self._write(lambda: write_text(self.path, text))
        self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, state="")
        self._progress.start()
        self.watch.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advances the bar."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Appends one line for a training step; the Trainer's closing summary is no such step."""
        if logs is None or "loss" not in logs:
            return
        row = {"step": state.global_step, **{name: float(logs[name]) for name in (*_LOGGED, *_WATCHED) if name in logs}}
        self.rows.append(row)
        self._progress.update(self._task, state=_shown(row))
        if self.visible:
            self._write(lambda: append(self.path, row))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the rates of the whole run, since training began or was resumed."""
        self._overall = {"steps": state.global_step, **self.watch.overall()}

    def close(self) -> None:
        """Leaves the terminal as it was, however training ended."""
        self._progress.stop()

    def summary(self) -> dict[str, float]:
        """Steps, the last logged loss, and mean rates."""
        return {**self._overall, **({"loss": self.rows[-1]["loss"]} if self.rows else {})}

    def _write(self, write: Callable[[], object]) -> None:
        try:
            with folders.writing(self.path):
                write()
        except ValueError as error:
            self._fail(str(error))

    def _written(self) -> list[dict[str, float]]:
        """Whole lines; a kill can have cut the last one off."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _shown(row: dict[str, float]) -> str:
    """One step in a line of the terminal."""
    words = [
        f"loss {row['loss']:.3f}",
        f"{row['samples_per_second']:,.1f} samples/s",
        f"{row['tokens_per_second']:,.0f} tokens/s",
        *([f"{row['mfu']:.0%} MFU"] if "mfu" in row else []),
        *([f"{row['data_wait']:.0%} waiting for data"] if row["data_wait"] > _WORTH_SAYING else []),
        f"{row['memory_gib']:.1f} GiB",
    ]
    return "  ".join(words)
