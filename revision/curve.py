"""The live bar and the log of a training run."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from revision.dataset import ConversationDataset


class CurveCallback(TrainerCallback):
    """Shows loss, samples/s and tokens/s, appends each logged step to a JSON-lines file, and tells the data set its
    epoch.

    Args:
        path: of the log.
        dataset: gets `set_epoch`; its collated tokens are counted.
        visible: whether this process shows the bar and writes the log.
    """

    def __init__(self, path: Path, dataset: ConversationDataset, *, visible: bool) -> None:
        self.path, self.dataset, self.visible = path, dataset, visible
        self.rows: list[dict[str, float]] = []
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rates]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not visible,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start bar, clock and log; a resumed run appends."""
        if self.visible and state.global_step == 0:
            self.path.write_text("")
        self._task = self._progress.add_task("training", total=state.max_steps, loss="-", rates="")
        self._progress.update(self._task, completed=state.global_step)
        self._progress.start()
        self._began, self._first = time.monotonic(), state.global_step
        self._tokens_at_start = self._tokens(state)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fresh noise for sampled alignments."""
        self.dataset.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one line; stop on a loss that is no number."""
        if logs is None or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            self._progress.stop()
            raise ValueError(
                f"the loss is {loss} at step {state.global_step}; lower trainer.learning_rate, train in float32, or look "
                "at the records"
            )
        seconds = time.monotonic() - self._began
        samples = (state.global_step - self._first) * args.train_batch_size * args.gradient_accumulation_steps
        row = {
            "step": state.global_step,
            "loss": loss,
            "learning_rate": float(logs.get("learning_rate", 0.0)),
            "grad_norm": float(logs.get("grad_norm", 0.0)),
            "samples_per_second": samples * args.world_size / seconds,
            "tokens_per_second": (self._tokens(state) - self._tokens_at_start) / seconds,
        }
        self.rows.append(row)
        rates = f"{row['samples_per_second']:.1f} samples/s  {row['tokens_per_second']:,.0f} tokens/s"
        self._progress.update(self._task, loss=f"{loss:.3f}", rates=rates)
        if self.visible:
            with self.path.open("a") as stream:
                stream.write(json.dumps(row) + "\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()

    @staticmethod
    def _tokens(state: TrainerState) -> int:
        return int(state.num_input_tokens_seen or 0)

    def summary(self) -> dict[str, float]:
        """The last logged row; empty if the run was shorter than `logging_steps`."""
        return dict(self.rows[-1]) if self.rows else {}
