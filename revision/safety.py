"""The part of the configuration that keeps a long run from harm; `schema` takes it in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class GuardPolicy(Enum):
    """What becomes of a training step whose loss is no number, or a spike."""

    stop = "stop"
    skip = "skip"
    roll_back = "roll_back"


@dataclass
class CheckpointConfig:
    """Checkpoints of a training command; how many are kept is trainer.save_total_limit."""

    minutes: float | None = 10.0  # between them, where trainer.save_steps does not say when; null: at signals only


@dataclass
class GuardConfig:
    """A step whose loss is no number, or a spike: stop, skip its update, or roll back to the last checkpoint."""

    policy: GuardPolicy = GuardPolicy.stop
    spike: float | None = None  # standard deviations above the median of recent losses, robustly; null: no loss is one
    window: int = 100  # steps that are recent
    limit: int = 10  # bad steps before the run stops whatever the policy


@dataclass
class VerifyConfig:
    """`verify`: checkpoints, models and stores against their checksums."""

    path: str | None = None  # a folder or one above several; null: everything that this run has made and reads
