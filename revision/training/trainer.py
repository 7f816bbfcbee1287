"""What this project adds to the Trainer of transformers: an order of samples, a stop, and a check at the start."""

from __future__ import annotations

import math
from typing import Any

import torch
from rich import get_console
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from revision.progress import say
from revision.training.groups import Rates, is_set, of_parts, split
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
    """The Trainer, with samples grouped by length at no cost, rates of parts, and a stop at a loss that is no number.

    Args:
        rates: learning rate and weight decay of each part; what it leaves out is what the arguments say.
        **kwargs: of the Trainer.
    """

    def __init__(self, *, rates: Rates, **kwargs: Any) -> None:
        self.rates = rates
        super().__init__(**kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own, its groups split by part where one has a rate or a decay of its own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and is_set(self.rates):
            whole: Any = self.model if model is None else model
            named = [(name, one) for name, one in whole.named_parameters() if one.requires_grad]
            split(optimizer, self.rates, named=named, decayed=set(self.get_decay_parameter_names(whole)))
        return optimizer

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
    """Says, once everything is wrapped and before the first step, what trains and on what; and checks it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

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
        rates = of_parts(self._trainer.rates, learning_rate=args.learning_rate, weight_decay=args.weight_decay)
        get_console().print(parts_table(self._trainer.model, rates))
        say(
            f"{samples:,} samples on {args.world_size} process(es) ({args.device}, {engine}): an epoch is "
            f"{len(train_dataloader):,} batches of {args.train_batch_size} each, training {state.max_steps:,} steps of "
            f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size} samples"
        )
