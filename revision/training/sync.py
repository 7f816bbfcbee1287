"""What all processes decide together at each step: whether it is bad, whether to save, and whether to leave.

One all-reduce of a few numbers just before the update carries everything that only one process may know: a loss that is
no number, a signal, the clock, a record that cannot be learned from, a log that cannot be written. So nobody waits for
one that has stopped, and all do the same. DeepSpeed updates within its backward pass: where an update may have to be
left out, the exchange is made there (`gate`), otherwise after it.
"""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from revision import folders
from revision.files import write_text
from revision.interrupts import WATCHED, SignalWatch
from revision.progress import say
from revision.training import ranks
from revision.training.curve import append
from revision.training.gate import UpdateGate
from revision.training.guard import Guard, LossWindow

if TYPE_CHECKING:
    from revision.training.trainer import StageTrainer

FAULTS = "faults.jsonl"
_AT_LEAST = 10  # times as long as a checkpoint takes lies between two, whatever `minutes` says
_SHOWN = 8  # ids in a sentence; all of them are in the file


class StepSync(TrainerCallback):
    """Seeds each step, watches its loss, and saves and leaves when it is time to.

    Args:
        trainer: that this is a callback of.
        watch: signals that ask to leave.
        guard: what becomes of a bad step.
        minutes: between checkpoints, where TrainingArguments.save_strategy does not say when; None: at signals only.
        log: folder of `faults.jsonl`.
    """

    def __init__(
        self, trainer: StageTrainer, *, watch: SignalWatch, guard: Guard, minutes: float | None, log: Path
    ) -> None:
        self._trainer, self._watch, self._guard, self._minutes = trainer, watch, guard, minutes
        self._log = log / FAULTS
        self._window = LossWindow(guard.window, guard.spike)
        self.bad_steps = 0
        self._save = False
        self._signal: signal.Signals | None = None
        self._gate: UpdateGate | None = None
        self._fault: str | None = None  # of this step, which is to be dealt with
        self._saved_at = time.monotonic()
        self._seconds = 0.0  # that the last checkpoint took
        self.left: signal.Signals | None = None

    def state(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"faults": self.bad_steps, "policy": self._guard.policy, "losses": list(self._window.losses)}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over `state` of an earlier process.

        Raises:
            ValueError: it holds bad steps that another policy has dealt with.
        """
        if state["faults"] and state["policy"] != self._guard.policy:
            raise ValueError(
                f"guard.policy={self._guard.policy}, but guard.policy={state['policy']} has dealt with "
                f"{state['faults']} bad step(s) before the last checkpoint; restore it, or delete "
                f"{self._trainer.checkpoints.folder} to start anew"
            )
        self.bad_steps = state["faults"]
        self._window.losses.extend(state["losses"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock, and forgets bad steps that come again; a run that may have to return to its beginning keeps
        it."""
        if args.process_index == 0 and self._log.is_file():
            lines = self._log.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < state.global_step]
            write_text(self._log, "".join(kept))
        self._saved_at = time.monotonic()
        self._trainer.resume_log()
        if args.deepspeed and self._guard.policy != "stop":
            self._gate = UpdateGate(self._trainer.model_wrapped, self._may_update)
        if self._guard.policy == "roll_back" and state.global_step == 0:
            self._trainer.save_checkpoint()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Random numbers of a step (dropout) depend on (seed, step, rank) alone, so that none have to be kept."""
        entropy = np.random.SeedSequence([args.seed, state.global_step, args.process_index])
        set_seed(int(entropy.generate_state(1)[0]))
        self._fault = None
        self._trainer.begin_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Exchanges what each process knows, unless that is done, and deals with a bad step.

        Raises ValueError on all processes where one has failed, or the guard says so."""
        if self._gate is None:
            self._exchange()
        elif self._gate.pass_by():
            assert self._fault is not None, "an update is left out for a reason"
        if self._fault is None:
            return
        if self._guard.policy == "skip":
            self._trainer.skip_update()
            done = "its update is left out"
        else:
            done = f"back to {self._trainer.roll_back()}, and on with the samples that follow"
        if ranks.rank() == 0:
            say(f"{self._fault}: {done}")

    def _may_update(self, bad_gradient: bool) -> bool:
        """Makes the exchange before an update of DeepSpeed."""
        self._trainer.bad_norm = torch.tensor(float(bad_gradient), device=self._trainer.args.device)
        self._exchange()
        return self._fault is None

    def _exchange(self) -> None:
        """What each process knows of this step becomes known to all; a bad one is written down.

        Raises ValueError on all processes where one has failed, or the guard stops at this step."""
        state = self._trainer.state
        losses = self._trainer.losses
        due = self._minutes is not None and time.monotonic() - self._saved_at >= max(
            60 * self._minutes, _AT_LEAST * self._seconds
        )
        failure = next(iter(self._trainer.failures), None)
        known = [float(failure is not None), float(due and ranks.rank() == 0)]
        known += [float(one in self._watch.received) for one in WATCHED]
        mine = torch.stack([torch.stack(losses).sum().float(), self._trainer.bad_norm])
        values = ranks.total(torch.cat([mine, torch.tensor(known, device=mine.device)])).tolist()
        loss, bad_norm, failed, save, *signals = values
        if failed > 0:
            ranks.agree(failure)
        self._save = save > 0
        self._signal = next((one for one, count in zip(WATCHED, signals, strict=True) if count > 0), None)
        loss /= ranks.world()
        ceiling = self._window.ceiling()
        if not math.isfinite(loss):
            self._fault = self._note(state.global_step, loss, f"the loss is {loss}")
        elif bad_norm > 0:
            self._fault = self._note(state.global_step, loss, "the gradient is no number")
        elif loss > ceiling:
            why = f"the loss is {loss:.4g}, above {ceiling:.4g}, which makes it a spike"
            self._fault = self._note(state.global_step, loss, why)
        else:
            self._window.add(loss)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves when it is time, and leaves when a signal asks for it; a run that is at its end goes on to finish."""
        if self._save:
            control.should_save = True
            self._saved_at = time.monotonic()
        if self._signal is not None and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.left = self._signal

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts the clock anew, and notes how long that took."""
        now = time.monotonic()
        self._seconds = now - self._saved_at
        self._saved_at = now

    def _note(self, step: int, loss: float, what: str) -> str:
        """Writes a bad step down and says in a sentence what and where it was. Called by all processes alike.

        Raises ValueError where it ends the run."""
        shares = ranks.gather(self._trainer.suspects())
        ids = [name for bad, _ in shares for name in bad] or [name for _, every in shares for name in every]
        self.bad_steps += 1
        over = self.bad_steps > self._guard.limit
        policy = "stop" if over else self._guard.policy
        self._append({"step": step, "loss": loss, "reason": what, "policy": policy, "ids": ids})
        shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
        where = f"{what} after step {step}, at samples {shown}"
        if policy == "stop":
            why = f" and more than guard.limit={self._guard.limit} steps were bad" if over and self._guard.limit else ""
            onward = "guard.policy=skip" if self._guard.policy == "stop" else "a higher guard.limit"
            raise ValueError(
                f"{where}{why}; {onward} goes on from the last checkpoint, and a lower trainer.learning_rate, float32 "
                f"or other records (all are in {self._log}) begin anew, with {self._trainer.checkpoints.folder} deleted"
            )
        return where

    def _append(self, row: dict[str, Any]) -> None:
        """Writes one bad step down. Called by all processes, all of which raise ValueError where the disk refuses."""
        failure = None
        if ranks.rank() == 0:
            try:
                with folders.writing(self._log):
                    append(self._log, row)
            except ValueError as error:
                failure = str(error)
        ranks.agree(failure)
