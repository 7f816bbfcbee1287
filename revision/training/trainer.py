"""What this project adds to the Trainer of transformers: an order of samples, checkpoints, and a check at the start."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from revision.costs.watch import Watch
from revision.data.dataset import ConversationDataset
from revision.data.packing import PackedDataset
from revision.interrupts import SignalWatch
from revision.progress import counted, say
from revision.training import states
from revision.training.checkpoints import Checkpoints
from revision.training.engines import require_engine
from revision.training.groups import Rates, is_set, of_parts, split
from revision.training.guard import Guard
from revision.training.order import Batches, GlobalBatches, make_order
from revision.training.parts import checksums, parts_table
from revision.training.prefix import SharedPrefix
from revision.training.refusals import REFUSED, RefusingCollator, RefusingDataset
from revision.training.sync import StepSync


class StageTrainer(Trainer):
    """The Trainer, with an order of samples that any number of processes share, rates of parts, and our checkpoints.

    Args:
        rates: learning rate and weight decay of each part; what it leaves out is what the arguments say.
        checkpoints: where they go.
        meter: knows the rates that are logged.
        failures: sentences, with the first of which all processes stop at the exchange of the step.
        watch, guard, minutes, log: as `StepSync` takes them.
        prefix: what the samples of a micro-batch may share.
        **kwargs: of the Trainer.
    """

    model: nn.Module
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *,
        rates: Rates,
        checkpoints: Checkpoints,
        meter: Watch,
        failures: list[str],
        watch: SignalWatch,
        guard: Guard,
        minutes: float | None,
        log: Path,
        prefix: SharedPrefix | None = None,
        **kwargs: Any,
    ) -> None:
        self.rates, self.prefix = rates, prefix
        super().__init__(**kwargs)
        self.checkpoints = checkpoints
        self.meter, self.failures = meter, failures
        self.losses: list[torch.Tensor] = []  # of the micro-batches of this step
        self.bad_norm = torch.zeros((), device=self.args.device)
        self.resumed_log: tuple[int, float] | None = None
        self.sync = StepSync(self, watch=watch, guard=guard, minutes=minutes, log=log)
        self.add_callback(self.sync)
        self._last_saved: int | None = None
        self._logged_before = torch.zeros(())
        self.batches = self._make_batches()

    def _make_batches(self) -> GlobalBatches:
        args = self.args
        dataset: Any = self.train_dataset
        assert isinstance(dataset, ConversationDataset | PackedDataset)
        batch = self._train_batch_size * args.gradient_accumulation_steps * args.world_size
        # Packs come in an order of their own, a new one in each epoch.
        strategy = "sequential" if isinstance(dataset, PackedDataset) else args.train_sampling_strategy
        order = make_order(strategy, len(dataset), batch=batch, seed=args.seed, lengths=dataset.lengths)
        samples = len(dataset)
        if args.dataloader_drop_last:
            # Rows that only fill up a round differ with the number of processes, and must not make a batch whole.
            samples = len(dataset.plan) if isinstance(dataset, PackedDataset) else samples
            _require_a_batch(samples, batch)
        return GlobalBatches(
            order,
            samples,
            micro=self._train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            processes=args.world_size,
            rank=args.process_index,
            drop_last=args.dataloader_drop_last,
            announce=dataset.set_epoch,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own, its groups split by part where one has a rate or a decay of its own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and is_set(self.rates):
            whole: Any = self.model if model is None else model
            named = [(name, one) for name, one in whole.named_parameters() if one.requires_grad]
            split(optimizer, self.rates, named=named, decayed=set(self.get_decay_parameter_names(whole)))
        return optimizer

    def get_train_dataloader(self) -> Batches:
        """Batches of this process alone: nothing is drawn, read or sent for the others."""
        args = self.args
        return Batches(
            RefusingDataset(self.train_dataset),  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=RefusingCollator(self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def resume_log(self) -> None:
        """Goes on in the mean of the losses since the last logged step."""
        if self.resumed_log is not None:
            self._globalstep_last_logged, so_far = self.resumed_log
            self._tr_loss.fill_(so_far)

    def begin_step(self) -> None:
        """Before the first micro-batch of a step."""
        self.losses = []
        self._logged_before = self._tr_loss.clone()

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step; the meter notes how long they are waited for, and refusals are kept."""
        batches, items = super().get_batch_samples(self.meter.timed(epoch_iterator), num_batches, device)
        self.failures += [batch.pop(REFUSED) for batch in batches if REFUSED in batch]
        return batches, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the meter's rates to what is logged of a step."""
        super().log({**logs, **self.meter.read()} if "loss" in logs else logs, start_time)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Keeps the loss, on the device, for the exchange before the update."""
        self.meter.count(inputs)  # whole samples, however much of them is shared
        inputs = inputs if self.prefix is None else self.prefix.cut(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.losses[-1] = loss
        return loss

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, which is kept already: DeepSpeed makes its exchange within the backward pass."""
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append((loss[0] if isinstance(loss, tuple) else loss).detach())
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.accelerator.scaler is None and norm is not None:  # a scaler meets them often, and skips by itself
            whole = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm, device=self.args.device)
            self.bad_norm = (~torch.isfinite(whole)).float()
        return norm

    def suspects(self) -> tuple[list[str], list[str]]:
        """Ids of this process's samples in the step: those of micro-batches whose loss is no number, and all."""
        dataset: Any = self.train_dataset
        batches = self.batches.of_step(self.state.global_step)
        bad, every = [], []
        for batch, loss in zip(batches, self.losses, strict=True):
            names = [name for index in batch for name in dataset.names(index)]
            every += names
            bad += [] if math.isfinite(float(loss)) else names
        return bad, every

    def skip_update(self) -> None:
        """Called just before an update that is to be left out; the loss that is logged leaves the step out too.

        DeepSpeed has left it out already, and with it the schedule where that is the engine's.
        """
        assert self.accelerator.scaler is None, "a scaler would be left in the middle of its step"
        if not self.is_deepspeed_enabled:
            self.accelerator.gradient_state._set_sync_gradients(False)
        elif states.engine_has_scheduler(self):
            self.model_wrapped.lr_scheduler.step()
        steps = self.state.global_step - self._globalstep_last_logged
        logged = [row["loss"] for row in self.state.log_history if "loss" in row]
        before = float(self._logged_before)
        self._tr_loss.fill_(before + (before / steps if steps else logged[-1] if logged else 0.0))

    def roll_back(self) -> str:
        """Weights and optimizer as in the last regular checkpoint, whose name is returned; the schedule stays."""
        folder = self.checkpoints.regular()
        assert folder is not None, "a run that may roll back keeps a regular checkpoint from its beginning on"
        rates = [group["lr"] for group in self.optimizer.param_groups]
        states.load_parameters(self, folder)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.skip_update()
        return folder.name

    def save_checkpoint(self) -> None:
        """Saves the state after this step, unless it is on the disk already."""
        step = self.state.global_step
        if step != self._last_saved:
            sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
            self.checkpoints.write(step, lambda folder: states.save(self, folder), alone=sharded)
            self._last_saved = step

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.save_checkpoint()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            # Of a resumed epoch the Trainer reads through a loader of its own, which older ones name no epoch to.
            self.batches.set_epoch(kwargs["epoch"])
            super()._run_epoch(*args, **kwargs)
        else:  # resumed from the checkpoint of the last step: the Trainer would take one more
            self.control.should_training_stop = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        states.load_weights(self.model, Path(resume_from_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """There is none: `StepSync` seeds each step."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            states.load(self, Path(resume_from_checkpoint))
            self.state.compute_steps(self.args, max_steps)  # intervals may be others than before
            self._last_saved = self.state.global_step
        return prepared


def _require_a_batch(samples: int, batch: int) -> None:
    if samples < batch:
        raise ValueError(
            f"trainer.dataloader_drop_last=True leaves nothing to learn from: {samples:,} samples or packed rows fill "
            f"no global batch of {batch:,}; leave it out, or lower batch, accumulation or processes"
        )


class StartCheck(TrainerCallback):
    """Says, once everything is wrapped and before the first step, what trains and on what; and checks it.

    `before` then holds the checksums of the weights as the engine holds them.
    """

    def __init__(self, trainer: Any, engine: str) -> None:
        self._trainer, self._engine = trainer, engine
        self.before: dict[str, int] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Raises ValueError where engine or sharding are other than asked for: losses could not tell."""
        require_engine(self._trainer, self._engine, len(train_dataloader))
        self.before = checksums(self._trainer.model)
        dataset = self._trainer.train_dataset
        if args.process_index != 0:
            return
        engine, samples = type(self._trainer.model_wrapped).__name__, len(self._trainer.train_dataset)
        rates = of_parts(self._trainer.rates, learning_rate=args.learning_rate, weight_decay=args.weight_decay)
        get_console().print(parts_table(self._trainer.model, rates))
        if isinstance(dataset, PackedDataset):
            say(dataset.describe())
        what = "packed rows" if isinstance(dataset, PackedDataset) else "samples"
        processes = counted(args.world_size, "process", "processes")
        say(
            f"{samples:,} {what} on {processes} ({args.device}, {engine}): an epoch is "
            f"{len(train_dataloader):,} batches of {args.train_batch_size} each, training {state.max_steps:,} steps of "
            f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size} {what}"
        )
