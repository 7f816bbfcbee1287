"""The live bar and the log of a training run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from revision.embeddings.layout import write_whole


class CurveCallback(TrainerCallback):
    """Shows loss, samples/s and tokens/s on one line, and appends each logged step to a JSON-lines file.

    Rates are those since the last logged step. Tokens are those of the LLM's input, padding excluded, visual included.

    Args:
        path: of the log. A resumed run goes on in it, from the step of its checkpoint.
        visible: whether this process shows the bar and writes the log.
        samples_per_item: samples in an item of the data set: their mean number where items are packs.
    """

    def __init__(self, path: Path, *, visible: bool, samples_per_item: float = 1.0) -> None:
        self.path, self.visible, self.samples_per_item = path, visible, samples_per_item
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
            write_whole(self.path, lambda file: file.write(text.encode()))
        self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, state="")
        self._progress.start()
        self._begun = self._mark(args, state)
        self._last = self._begun

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
        now = self._mark(args, state)
        samples, tokens = self._rates(self._last, now)
        self._last = now
        row = {
            "step": state.global_step,
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": float(logs["grad_norm"]),
            "samples_per_second": samples,
            "tokens_per_second": tokens,
        }
        self.rows.append(row)
        shown = f"loss {row['loss']:.3f}  {samples:,.1f} samples/s  {tokens:,.0f} tokens/s"
        self._progress.update(self._task, state=shown)
        if self.visible:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the rates of the whole run."""
        self._end = self._mark(args, state)

    def close(self) -> None:
        """Leaves the terminal as it was, however training ended."""
        self._progress.stop()

    def summary(self) -> dict[str, float]:
        """Steps, the last logged loss, and mean rates since training began or was resumed."""
        samples, tokens = self._rates(self._begun, self._end)
        loss = {"loss": self.rows[-1]["loss"]} if self.rows else {}
        return {"steps": self._end[1], **loss, "samples_per_second": samples, "tokens_per_second": tokens}

    def _written(self) -> list[dict[str, float]]:
        """Whole lines; a kill can have cut the last one off."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _mark(self, args: TrainingArguments, state: TrainerState) -> tuple[float, int, float, int]:
        """Seconds, steps, samples and tokens so far, of all processes."""
        items = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        samples = state.global_step * items * self.samples_per_item
        return time.monotonic(), state.global_step, samples, int(state.num_input_tokens_seen)

    @staticmethod
    def _rates(start: tuple[float, int, float, int], end: tuple[float, int, float, int]) -> tuple[float, float]:
        """Samples and tokens a second."""
        seconds = max(end[0] - start[0], 1e-9)
        return (end[2] - start[2]) / seconds, (end[3] - start[3]) / seconds
