"""Which samples a process reads, in which order: a function of (seed, epoch) and the global batch alone.

A global batch is what one optimizer step learns from, over all processes and accumulated micro-batches. Step s of an
epoch takes the samples at places s G to (s + 1) G of the epoch's order, however many processes share them. So a resumed
run starts in the middle of an epoch without reading what lies before, and a run on another number of processes, with
the same G, sees the same global batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from revision.interrupts import kill_children_at_exit, leave_signals_to_the_parent

STRATEGIES = ("random", "sequential", "group_by_length")

Order = Callable[[int], Sequence[int]]  # epoch -> every sample once


def make_order(strategy: str, samples: int, *, batch: int, seed: int, lengths: Callable[[], list[int]]) -> Order:
    """The order of samples in each epoch.

    Args:
        strategy: one of `STRATEGIES`, as in TrainingArguments.train_sampling_strategy.
        samples: how many there are.
        batch: G; samples of like length come together in groups of it.
        seed: of the shuffle.
        lengths: asked for where they are needed.
    """
    assert strategy in STRATEGIES, strategy
    if strategy == "sequential":
        return lambda epoch: range(samples)
    known = lengths() if strategy == "group_by_length" else []

    def order(epoch: int) -> Sequence[int]:
        """Places of the samples, in the order of an epoch."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        if strategy == "group_by_length":
            return get_length_grouped_indices(known, batch, generator=generator)
        return torch.randperm(samples, generator=generator).tolist()

    return order


class GlobalBatches(Sampler[list[int]]):
    """This process's share of every global batch, micro-batch by micro-batch.

    Where the last micro-batch of an epoch is not full, what there is of it is spread over the processes; the share of
    one that is left without is empty, and the collator makes it a batch that teaches nothing. So no sample is read
    twice to fill up, and none is lost.

    Args:
        order: of the samples in an epoch.
        samples: how many there are.
        micro: samples a process and micro-batch.
        accumulation: micro-batches a step.
        processes, rank: how many share a global batch, and which of them this is.
        drop_last: leave out a last global batch that is not full.
        announce: called with each epoch before it begins.
    """

    def __init__(
        self,
        order: Order,
        samples: int,
        *,
        micro: int,
        accumulation: int = 1,
        processes: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        announce: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        self._order, self._announce = order, announce
        self.micro, self.accumulation, self.processes, self.rank = micro, accumulation, processes, rank
        whole = micro * accumulation * processes
        self._samples = samples // whole * whole if drop_last else samples
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is read next."""
        self._epoch = epoch
        self._announce(epoch)

    def __len__(self) -> int:
        """Micro-batches of an epoch, the same number for each process."""
        return -(-self._samples // (self.micro * self.processes))

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self) // self.accumulation)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(self._epoch)
        for place in range(len(self)):
            yield self._share(order, place)

    def of_step(self, step: int) -> list[list[int]]:
        """This process's micro-batches in a step of the run, counted from 0."""
        epoch, within = divmod(step, self.steps)
        order = self._order(epoch)
        first = within * self.accumulation
        return [self._share(order, place) for place in range(first, min(first + self.accumulation, len(self)))]

    def _share(self, order: Sequence[int], place: int) -> list[int]:
        wide = self.micro * self.processes
        start = place * wide
        count = min(wide, self._samples - start)
        low, high = (start + count * border // self.processes for border in (self.rank, self.rank + 1))
        return list(order[low:high])


class Batches(DataLoader[Any]):
    """A data loader over `GlobalBatches`, whose workers outlive signals; the Trainer names each epoch to it."""

    batch_sampler: GlobalBatches

    def __init__(self, dataset: Any, *, num_workers: int = 0, **options: Any) -> None:
        if num_workers:
            options["worker_init_fn"] = leave_signals_to_the_parent
            kill_children_at_exit()
        super().__init__(dataset, num_workers=num_workers, **options)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.batch_sampler.set_epoch(epoch)
