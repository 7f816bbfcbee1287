"""What this project adds to the Trainer of transformers: an order of samples, a stop, and a check at the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich import get_console
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from revision.packing import PackedDataset
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
    """The Trainer, with samples grouped by length at no cost, and a stop at the first loss that is no number."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, PackedDataset):
            return SequentialSampler(dataset)  # its own order is a new one in each epoch
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroups(batch, dataset.lengths(), seed=self.args.seed)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss is {loss.item()} after step {self.state.global_step}; lower trainer.learning_rate, train in "
                "float32, or look at the records"
            )
        return loss


class Epochs(TrainerCallback):
    """Tells data set and sampler which epoch begins.

    accelerate's loader tells only one of them when there are several processes or when batches are skipped to resume:
    packs and noise would stay those of the first epoch.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Sets the epoch, before the loader makes its first batch."""
        epoch = int(state.epoch or 0)
        train_dataloader.set_epoch(epoch)
        self._dataset.set_epoch(epoch)


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
        dataset = self._trainer.train_dataset
        samples = len(dataset)
        share = math.ceil(samples / (args.train_batch_size * args.world_size))
        assert args.dataloader_drop_last or len(train_dataloader) == share, "the data is not shared among processes"
        if args.process_index != 0:
            return
        get_console().print(parts_table(self._trainer.model, self._parts))
        if isinstance(dataset, PackedDataset):
            say(dataset.describe())
        what = "packed rows" if isinstance(dataset, PackedDataset) else "samples"
        say(
            f"{samples:,} {what} on {args.world_size} process(es) ({args.device}, {engine}): an epoch is "
            f"{len(train_dataloader):,} batches of {args.train_batch_size} each, training {state.max_steps:,} steps of "
            f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size} {what}"
        )
