"""What this project adds to the Trainer of transformers: an order of samples, a stop, and a check at the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich import get_console
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from revision.progress import say
from revision.training.engines import require_engine
from revision.training.parts import checksums, parts_table


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


class StartCheck(TrainerCallback):
    """Says, once everything is wrapped and before the first step, what trains and on what; and checks it.

    `before` then holds the checksums of the weights as the engine holds them.
    """

    def __init__(self, trainer: Any, parts: Sequence[str], engine: str) -> None:
        self._trainer, self._parts, self._engine = trainer, parts, engine
        self.before: dict[str, list[int]] = {}

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
        if args.process_index != 0:
            return
        engine, samples = type(self._trainer.model_wrapped).__name__, len(self._trainer.train_dataset)
        get_console().print(parts_table(self._trainer.model, self._parts))
        say(
            f"{samples:,} samples on {args.world_size} process(es) ({args.device}, {engine}): an epoch is "
            f"{len(train_dataloader):,} batches of {args.train_batch_size} each, training {state.max_steps:,} steps of "
            f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size} samples"
        )
