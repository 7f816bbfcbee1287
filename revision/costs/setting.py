"""How a stage trains, as far as its cost depends on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from transformers import TrainingArguments

from revision.costs.memory import Sharding

_SHARDINGS = {
    "ddp": Sharding.zero0,
    "zero1": Sharding.zero1,
    "zero2": Sharding.zero2,
    "zero3": Sharding.zero3,
    "zero3_offload": Sharding.zero3,
    "fsdp2": Sharding.fsdp,
}


@dataclass(frozen=True)
class Setting:
    """How a stage trains: what decides its memory and its steps.

    Attributes:
        gpus: that share the work.
        sharding: of weights, gradients and optimizer states.
        batch: records a GPU and micro-batch.
        accumulation: micro-batches a step.
        checkpointing: of activations.
        offload: optimizer states lie in the memory of the host.
        epochs: over the records; `max_steps` above zero overrides it.
        adapter: method of the adapter that trains, which not every sharding does; None: none does.
        row: tokens of a packed row, which is a micro-batch then, of as many records as fit; None: they are padded.
    """

    gpus: int
    sharding: Sharding
    batch: int
    accumulation: int
    checkpointing: bool
    offload: bool = False
    epochs: float = 1.0
    max_steps: int = -1
    adapter: str | None = None
    row: int | None = None

    def in_rows(self, budget: int | None, *, mean: float, longest: int) -> Setting:
        """The same with packed rows.

        Args:
            budget: tokens of a row; None: as `data.packing.budget_for` has it, what a batch of records holds.
            mean, longest: tokens of a record.
        """
        return replace(self, batch=1, row=budget or max(math.ceil(self.batch * mean), longest))


def setting_of(
    trainer: Mapping[str, Any], gpus: int, *, engine: str = "ddp", options: Mapping[str, Any] | None = None
) -> Setting:
    """The setting of a `trainer` mapping; what it leaves out is as in transformers.TrainingArguments.

    Args:
        gpus: that share the work.
        engine: as in `engine.kind`.
        options: further settings of that engine.
    """
    defaults = {one.name: one.default for one in fields(TrainingArguments)}

    def value(name: str) -> Any:
        """A field of the trainer, or transformers' default."""
        return trainer.get(name, defaults[name])

    newer = trainer.get("activation_checkpointing")  # what transformers has called it since 5.24; it has the last word
    zero = (options or {}).get("zero_optimization") or {}
    host = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    return Setting(
        gpus=gpus,
        sharding=_SHARDINGS[engine],
        batch=value("per_device_train_batch_size"),
        accumulation=value("gradient_accumulation_steps"),
        checkpointing=bool(value("gradient_checkpointing") if newer is None else newer),
        offload=host or engine == "zero3_offload",
        epochs=value("num_train_epochs"),
        max_steps=value("max_steps"),
    )
