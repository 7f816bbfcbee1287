"""Samples packed into rows without padding: the plan of an epoch, and the data set of packs.

A pack is one row [1, T] of whole samples that together stay within a budget of tokens. Positions start again at 0 with
each sample, by which attention keeps them apart, and no sample predicts the first token of the next. So a packed batch
has the losses and gradients of its samples, and nothing is spent on padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from revision.data.conversation import IGNORED
from revision.data.dataset import ConversationDataset, Example

_SHAPES, _EPOCH = 2, 3  # set these draws apart from others of the same seed
_LARGE = 4  # a sample of more than a fourth of the budget is placed first


class PackPlan:
    """Which samples share a row, in each epoch.

    The shapes of the packs (the lengths in each) depend on lengths, budget and seed alone. An epoch deals the samples
    of each length out over the places of that length and shuffles the packs. So every epoch has as many packs, in
    other company and order, and every process works out the same ones. Each sample is in exactly one pack an epoch.

    Long samples are placed by best fit, longest first. The others follow in random order, so that a row mixes lengths
    as the corpus does, and only the last place of a row goes to the longest one that fits. Fill is above 97 % on
    captions and conversations (tests/test_packing.py). Planning is linear in samples and lengths; a million samples
    take some seconds, an epoch a fraction of one.

    Args:
        lengths: int [n], tokens of each sample, at least 1.
        tokens: budget of a row.
        seed: of shapes and epochs.

    Raises:
        ValueError: a sample is longer than the budget.
    """

    def __init__(self, lengths: np.ndarray, tokens: int, *, seed: int = 0) -> None:
        self.tokens, self.seed = tokens, seed
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if len(self._lengths) == 0 or self._lengths.max() > tokens:
            longest = self._lengths.max(initial=0)
            raise ValueError(f"a row of {tokens} tokens cannot hold a sample of {longest}; raise pack_tokens to that")
        shapes = pack_lengths(self._lengths, tokens, seed=seed)
        self.starts = np.cumsum([0, *map(len, shapes)])  # int64 [packs + 1]
        places = np.fromiter((length for shape in shapes for length in shape), dtype=np.int64, count=self.starts[-1])
        self._places = np.argsort(places, kind="stable")  # shortest first

    def __len__(self) -> int:
        """Packs an epoch."""
        return len(self.starts) - 1

    @property
    def fill(self) -> float:
        """Share of the budget that is used, between 0 and 1."""
        return float(self._lengths.sum() / (len(self) * self.tokens))

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The packs of an epoch: sample numbers int64 each, n in all."""
        rng = np.random.default_rng([self.seed, epoch, _EPOCH])
        shuffled = rng.permutation(len(self._lengths))
        members = np.empty_like(shuffled)
        members[self._places] = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        packs = np.split(members, self.starts[1:-1])
        return [packs[place] for place in rng.permutation(len(packs))]


def pack_lengths(lengths: np.ndarray, tokens: int, *, seed: int = 0) -> list[list[int]]:
    """Lengths dealt into rows of at most `tokens`, as `PackPlan` says; every length appears as often as it is given."""
    counts = np.bincount(lengths, minlength=tokens + 1).tolist()
    border = tokens // _LARGE
    rng = np.random.default_rng([seed, _SHAPES])
    rows = _best_fit_decreasing(counts, tokens, border)
    rows = [rows[place] for place in rng.permutation(len(rows))]
    small = _Pool(counts[: border + 1], rng)
    full = 0  # rows before this one take no more
    while small:
        if full == len(rows):
            rows.append([])
        room = tokens - sum(rows[full])
        while small and (length := small.draw(room)):
            rows[full].append(length)
            room -= length
        full += 1
    return rows


def _best_fit_decreasing(counts: Sequence[int], tokens: int, border: int) -> list[list[int]]:
    """Rows for the lengths above a border, each put where it leaves the least room.

    Rows are found by the room that they have left, in a set of bits: the lowest one from the length on.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms = 0
    for length in range(tokens, border, -1):
        for _ in range(counts[length]):
            roomy = rooms >> length
            if roomy:
                room = length + _lowest(roomy)
                row = by_room[room].pop()
                rooms ^= 0 if by_room[room] else 1 << room
            else:
                room, row = tokens, len(rows)
                rows.append([])
            rows[row].append(length)
            by_room.setdefault(room - length, []).append(row)
            rooms |= 1 << (room - length)
    return rows


class _Pool:
    """Lengths in random order, of which one that fits a gap can be taken ahead of its turn."""

    def __init__(self, counts: list[int], rng: np.random.Generator) -> None:
        self._queue = rng.permutation(np.repeat(np.arange(len(counts)), counts)).tolist()
        self._left = counts
        self._taken_ahead = [0] * len(counts)
        self._present = sum(1 << length for length, count in enumerate(counts) if count)
        self._next = 0

    def __bool__(self) -> bool:
        return self._present > 0

    def draw(self, room: int) -> int:
        """The next length where it leaves room for another one, else the longest that fits; 0 where none does."""
        while self._taken_ahead[self._queue[self._next]]:
            self._taken_ahead[self._queue[self._next]] -= 1
            self._next += 1
        length: int = self._queue[self._next]
        if room - length >= _lowest(self._present):
            self._next += 1
        else:
            length = (self._present & ((2 << room) - 1)).bit_length() - 1
            if length < 1:
                return 0
            self._taken_ahead[length] += 1
        self._left[length] -= 1
        self._present ^= 0 if self._left[length] else 1 << length
        return length


def _lowest(bits: int) -> int:
    """Place of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1


def budget_for(lengths: np.ndarray, batch: int) -> int:
    """Tokens of a row that holds as many samples as a padded batch does, on average; at least the longest sample."""
    return max(int(np.ceil(batch * np.mean(lengths))), int(np.max(lengths)))


class PackedDataset(Dataset[list[Example]]):
    """Packs of an epoch, in its order: item i is a list of examples.

    Its length is a multiple of the number of processes, so that they take turns and none waits for another. What the
    packs lack for that is filled by the shortest sample without its labels, which adds nothing to loss or gradient.
    The packs of a step are thus the same ones, however many processes share them.

    Args:
        dataset: with token lengths (`ConversationDataset.keep`).
        tokens: budget of a row; None: as many samples as `batch`, on average.
        batch: samples of a padded batch.
        seed: of the plan.
        processes: how many share an epoch.

    Raises:
        ValueError: a sample is longer than the budget.
    """

    def __init__(
        self, dataset: ConversationDataset, *, tokens: int | None, batch: int = 1, seed: int = 0, processes: int = 1
    ) -> None:
        assert dataset.tokens is not None, "lengths are counted before packing"
        self.dataset, self.processes = dataset, processes
        budget = budget_for(dataset.tokens, batch) if tokens is None else tokens
        self.plan = PackPlan(dataset.tokens, budget, seed=seed)
        self._shortest = int(np.argmin(dataset.tokens))
        # In shared memory: workers that live through several epochs see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._planned: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return -(-len(self.plan) // self.processes) * self.processes

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch: other packs, and other noise on the embeddings."""
        self._epoch.fill_(epoch)
        self.dataset.set_epoch(epoch)

    def members(self, index: int) -> list[int]:
        """Numbers of the samples in a pack of this epoch; none for one that only fills up the last round."""
        epoch = int(self._epoch)
        if self._planned[0] != epoch:
            self._planned = (epoch, self.plan.epoch(epoch))
        return self._planned[1][index].tolist() if index < len(self.plan) else []

    def names(self, index: int) -> list[str]:
        """Ids of the records in a pack."""
        return [name for member in self.members(index) for name in self.dataset.names(member)]

    def lengths(self) -> list[int]:
        """Tokens of each pack of this epoch."""
        assert self.dataset.tokens is not None, "lengths are counted before packing"
        return [int(self.dataset.tokens[self.members(index)].sum()) for index in range(len(self))]

    def __getitem__(self, index: int) -> list[Example]:
        """The examples of a pack.

        Raises:
            ValueError: as `ConversationDataset`, or an example has other tokens than the plan was made with.
            IndexError: beyond the last pack.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        members = self.members(index)
        if members:
            return [self._example(member) for member in members]
        silent = self._example(self._shortest)
        return [{**silent, "labels": np.full_like(silent["labels"], IGNORED)}]

    def _example(self, member: int) -> Example:
        """Held against the plan: a row of other tokens would be too long, or too short, without a word."""
        assert self.dataset.tokens is not None, "lengths are counted before packing"
        example = self.dataset[member]
        planned, found = int(self.dataset.tokens[member]), len(example["input_ids"])
        if found != planned:
            counted = "the file of token lengths" if self.dataset.counted is None else self.dataset.counted
            raise ValueError(
                f"sample {self.dataset.names(member)[0]} has {found} tokens, but its row is planned with {planned}; "
                f"delete {counted}, so that they are counted anew"
            )
        return example

    def describe(self) -> str:
        """The plan in one sentence."""
        return (
            f"{len(self.dataset):,} samples in {len(self.plan):,} rows of up to {self.plan.tokens:,} tokens, "
            f"{self.plan.fill:.1%} full, {len(self.dataset) / len(self.plan):.1f} samples each"
        )
