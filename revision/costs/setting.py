"""How a stage trains, as far as its cost depends on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from revision.costs.memory import Sharding


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
    """

    gpus: int
    sharding: Sharding
    batch: int
    accumulation: int
    checkpointing: bool
    offload: bool = False
    epochs: float = 1.0
    max_steps: int = -1


def setting_of(trainer: Mapping[str, Any], gpus: int) -> Setting:
    """The setting of a `trainer` mapping; what it leaves out is as in transformers.TrainingArguments.

    Raises:
        ValueError: a DeepSpeed file that cannot be read, or a ZeRO stage that does not exist.
    """
    defaults = {one.name: one.default for one in fields(TrainingArguments)}

    def value(name: str) -> Any:
        return trainer.get(name, defaults[name])

    sharding, offload = Sharding.fsdp if value("fsdp") else Sharding.zero0, False
    if value("deepspeed"):
        zero = _deepspeed(value("deepspeed")).get("zero_optimization", {})
        stage = zero.get("stage", 0)
        if stage not in (0, 1, 2, 3):
            raise ValueError(f"trainer.deepspeed: zero_optimization.stage = {stage}: must be 0, 1, 2 or 3.")
        sharding = Sharding(f"zero{stage}")
        offload = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    return Setting(
        gpus=gpus,
        sharding=sharding,
        batch=value("per_device_train_batch_size"),
        accumulation=value("gradient_accumulation_steps"),
        checkpointing=bool(value("gradient_checkpointing")),
        offload=offload,
        epochs=value("num_train_epochs"),
        max_steps=value("max_steps"),
    )


def _deepspeed(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    path = Path(str(given))
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"trainer.deepspeed = {given}: must be a mapping or a JSON file ({error}).") from error
    return found
