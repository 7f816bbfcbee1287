"""What this project adds to the Trainer of transformers: an order of samples, a stop, and a check at the start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich import get_console
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from revision.costs.watch import Watch
from revision.progress import say
from revision.training.parts import parts_table


class LengthGroups(LengthGroupedSampler):
    """Samples of like length together, in an order that depends on (seed, epoch) alone.

    So every process draws the same one, and a resumed run goes on in it.
    """

    def __init__(self, batch_size: int, lengths: list[int], *, seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.generator.manual_seed(1_000_003 * self._seed + epoch)


class StageTrainer(Trainer):
    """The Trainer, with samples grouped by length at no cost, a stop at the first loss that is no number; watched."""

    def __init__(self, *args: Any, watch: Watch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch = watch

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        return super().get_batch_samples(self._watch.timed(epoch_iterator), num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, **self._watch.read()} if "loss" in logs else logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroups(batch, dataset.lengths(), seed=self.args.seed)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self._watch.count(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss is {loss.item()} after step {self.state.global_step}; lower trainer.learning_rate, train in "
                "float32, or look at the records"
            )
        return loss


class StartCheck(TrainerCallback):
    """Says, once everything is wrapped and before the first step, what trains and on what; and checks it."""

    def __init__(self, trainer: Any, parts: Sequence[str]) -> None:
        self._trainer, self._parts = trainer, parts

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Raises AssertionError where the engine is another than asked for: losses could not tell."""
        engine = type(self._trainer.model_wrapped).__name__
        if args.deepspeed:
            assert engine == "DeepSpeedEngine", f"DeepSpeed was asked for, but the engine is {engine}"
        elif args.world_size > 1 and not args.fsdp:
            assert engine == "DistributedDataParallel", f"{args.world_size} processes, but the engine is {engine}"
        samples = len(self._trainer.train_dataset)
        share = math.ceil(samples / (args.train_batch_size * args.world_size))
        assert args.dataloader_drop_last or len(train_dataloader) == share, "the data is not shared among processes"
        if args.process_index != 0:
            return
        get_console().print(parts_table(self._trainer.model, self._parts))
        say(
            f"{samples:,} samples on {args.world_size} process(es) ({args.device}, {engine}): an epoch is "
            f"{len(train_dataloader):,} batches of {args.train_batch_size} each, training {state.max_steps:,} steps of "
            f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size} samples"
        )
