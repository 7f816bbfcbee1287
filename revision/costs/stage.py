"""One training stage in numbers: steps, FLOPs, hours, memory, and what to change where it does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from revision.costs.devices import Device
from revision.costs.flops import Counts, Flops, Work
from revision.costs.lengths import Lengths
from revision.costs.memory import GIB, Batch, Footprint, Memory, Sharding
from revision.costs.setting import Setting

_ZERO = [Sharding.zero0, Sharding.zero1, Sharding.zero2, Sharding.zero3]
_PIECES = (Sharding.zero3, Sharding.fsdp)  # no process has whole weights


@dataclass(frozen=True)
class Extent:
    """How much a stage trains: steps of the optimizer, and records and tokens (padding left out) in all of them."""

    steps: int
    records: int
    tokens: float


@dataclass(frozen=True)
class Cost:
    """What that takes.

    Attributes:
        model: FLOPs of the tokens, as `flops.Work` counts them.
        hardware: FLOPs that the GPUs do: padding too, and what checkpointing computes again.
        hours: of all GPUs together at the assumed share of their peak.
    """

    model: Flops
    hardware: float
    hours: float


def extent(setting: Setting, *, records: int, tokens: float) -> Extent:
    """Counts steps as transformers.Trainer does.

    Args:
        records: in one epoch.
        tokens: of a record, on average.
    """
    held = _records_held(setting, tokens) * setting.gpus
    batches = math.ceil(records / held)
    steps = math.ceil(setting.epochs * max(math.ceil(batches / setting.accumulation), 1))
    seen = round(records * setting.epochs)
    if setting.max_steps > 0:
        steps = setting.max_steps
        seen = round(steps * held * setting.accumulation)
    return Extent(steps, seen, seen * tokens)


def _records_held(setting: Setting, tokens: float) -> float:
    """Records of a micro-batch; a packed row is taken to be full."""
    return setting.batch if setting.row is None else max(setting.row / tokens, 1.0)


def cost(setting: Setting, lengths: Lengths, work: Work, device: Device, *, mfu: float) -> Cost:
    """FLOPs and hours.

    Args:
        mfu: share of the device's peak that its arithmetic reaches, assumed.
    """
    records = extent(setting, records=lengths.records, tokens=lengths.tokens).records
    counts = Counts(lengths.tokens, lengths.pairs, lengths.labels, lengths.pictures)
    wide = 1 + lengths.padding
    padded = replace(counts, tokens=counts.tokens * wide, pairs=counts.pairs * wide**2)
    again = replace(padded, labels=0, pictures=0)  # checkpointing runs the layers twice
    hardware = work.of(padded).total + (work.of(again).forward if setting.checkpointing else 0)
    seconds = records * hardware / (setting.gpus * device.tflops * 1e12 * mfu)
    return Cost(work.of(counts).times(records), records * hardware, seconds / 3600)


def footprint(setting: Setting, lengths: Lengths, memory: Memory) -> Footprint:
    """Memory of a GPU in the worst step: records that are all as long as the longest, or a full row."""
    batch = Batch(setting.batch, setting.batch * lengths.longest, setting.batch * lengths.longest_labels)
    if setting.row is not None:
        learned = max(lengths.labels / lengths.tokens, min(lengths.longest_labels / lengths.longest, 1.0))
        batch = Batch(math.ceil(_records_held(setting, lengths.tokens)), setting.row, setting.row * learned)
    return memory.footprint(
        setting.sharding,
        gpus=setting.gpus,
        batch=batch,
        checkpointing=setting.checkpointing,
        offload=setting.offload,
    )


def remedy(setting: Setting, lengths: Lengths, memory: Memory, limit: float) -> str | None:
    """The nearest setting whose peak stays below `limit` bytes, in words; None where there is none.

    Near is what changes the fewest things; of several, what costs the least time.
    """
    fitting = [
        (len(words), price, words)
        for other, price, words in _others(setting)
        if words and footprint(other, lengths, memory).total <= limit
    ]
    return " and ".join(min(fitting)[2]) if fitting else None


@dataclass(frozen=True)
class Part:
    """A part of the model: its parameters, how many of them train, and how many are kept in four bits."""

    name: str
    parameters: int
    trained: int
    four_bit: int = 0

    @classmethod
    def of(cls, name: str, parameters: Iterable[nn.Parameter], four_bit: Iterable[nn.Parameter] = ()) -> Part:
        """Counts parameters, of which some may be kept in four bits."""
        packed = {id(one) for one in four_bit}
        sizes = [(one.numel(), one.requires_grad, id(one) in packed) for one in parameters]
        return cls(
            name,
            parameters=sum(size for size, _, _ in sizes),
            trained=sum(size for size, trains, _ in sizes if trains),
            four_bit=sum(size for size, _, small in sizes if small),
        )

    @property
    def state(self) -> str:
        """In a word or two."""
        word = "frozen" if not self.trained else "trains" if self.trained == self.parameters else "trains in part"
        return f"{word}, {self.four_bit:,} in 4 bits" if self.four_bit else word


@dataclass(frozen=True)
class StagePlan:
    """All that is known of a stage before it starts.

    Attributes:
        setting, lengths, parts, extent, cost: see there.
        memory: bytes on each GPU in the worst step, by sharding, first without checkpointing, then with it.
        peak: of these, the one that is set.
        budget: bytes of a GPU that may be filled.
        remedy: what to set where `peak` is above `budget`; None where it is not, or where nothing helps.
        least: bytes of the leanest setting.
    """

    setting: Setting
    lengths: Lengths
    extent: Extent
    cost: Cost
    parts: Sequence[Part]
    memory: dict[str, tuple[Footprint, Footprint]]
    peak: Footprint
    budget: float
    remedy: str | None
    least: float

    @property
    def fits(self) -> bool:
        """Whether a GPU has the memory for the worst step."""
        return self.peak.total <= self.budget

    def as_json(self) -> dict[str, Any]:
        """All fields as plain values; memory in bytes."""
        plain: dict[str, Any] = {**asdict(self), "fits": self.fits}
        plain["setting"]["sharding"] = self.setting.sharding.value
        plain["cost"]["model"] = self.cost.model._asdict()
        plain["memory"] = {
            name: {"plain": _bytes(without), "checkpointed": _bytes(with_it)}
            for name, (without, with_it) in self.memory.items()
        }
        plain["peak"] = _bytes(self.peak)
        return plain


def plan_stage(
    setting: Setting,
    lengths: Lengths,
    *,
    parts: Sequence[Part],
    work: Work,
    memory: Memory,
    device: Device,
    mfu: float,
    reserve_gib: float,
) -> StagePlan:
    """Everything about one stage.

    Args:
        parts, work, memory: of its model.
        device: one of the GPUs.
        mfu: assumed share of the device's peak.
        reserve_gib: assumed memory that a GPU needs for itself.
    """
    peak, budget = footprint(setting, lengths, memory), (device.memory_gib - reserve_gib) * GIB

    def both(sharding: Sharding) -> tuple[Footprint, Footprint]:
        """Footprints without and with checkpointing."""
        without, with_it = (
            footprint(replace(setting, sharding=sharding, checkpointing=value), lengths, memory)
            for value in (False, True)
        )
        return without, with_it

    return StagePlan(
        setting=setting,
        lengths=lengths,
        extent=extent(setting, records=lengths.records, tokens=lengths.tokens),
        cost=cost(setting, lengths, work, device, mfu=mfu),
        parts=parts,
        memory={sharding.value: both(sharding) for sharding in _possible(setting, Sharding)},
        peak=peak,
        budget=budget,
        remedy=None if peak.total <= budget else remedy(setting, lengths, memory, budget),
        least=min(footprint(other, lengths, memory).total for other, _, _ in _others(setting)),
    )


def _possible(setting: Setting, shardings: Iterable[Sharding]) -> list[Sharding]:
    """Those that a stage may be run with."""
    unfit = () if setting.adapter is None else (Sharding.fsdp,) if setting.adapter == "lora" else _PIECES
    return [sharding for sharding in shardings if sharding not in unfit]


def _bytes(footprint: Footprint) -> dict[str, float]:
    return {**asdict(footprint), "total": footprint.total}


def _others(setting: Setting) -> Iterator[tuple[Setting, float, list[str]]]:
    """Settings that train the same and take less memory; with each its price in time, as a rank, and it in words."""
    shardings = _ZERO[_ZERO.index(setting.sharding) :] if setting.sharding in _ZERO else [setting.sharding]
    shardings = _possible(setting, shardings)
    for number, sharding in enumerate(shardings if setting.gpus > 1 else shardings[:1]):
        for checkpointing in {setting.checkpointing, True}:
            batch, accumulation = setting.batch, setting.accumulation
            while True:
                words = [f"engine.kind={sharding.value}"] if number else []
                words += ["trainer.gradient_checkpointing=true"] if checkpointing != setting.checkpointing else []
                if batch != setting.batch:
                    words.append(f"per_device_train_batch_size={batch} with gradient_accumulation_steps={accumulation}")
                other = replace(
                    setting, sharding=sharding, checkpointing=checkpointing, batch=batch, accumulation=accumulation
                )
                smaller = math.log2(setting.batch / batch)
                price = 0.05 * number + 1.0 * (checkpointing != setting.checkpointing) + 0.3 * smaller
                yield other, price, words
                if batch % 2 or setting.row is not None:
                    break
                batch, accumulation = batch // 2, accumulation * 2
