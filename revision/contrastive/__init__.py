"""Contrastive training of a dual encoder, or of its heads alone on features of locked towers computed once."""

from revision.contrastive.features import (
    PairInputs,
    TowerInputs,
    distinct,
    head_inputs,
    load_or_compute,
    pictures_fingerprint,
    tower_features,
    towers_sha256,
    whole_inputs,
)
from revision.contrastive.parts import TrainedPart, heads_of, lock_towers, project, whole
from revision.contrastive.probe import probe, retrieval_ranks, unit_rows
from revision.contrastive.training import (
    ContrastSettings,
    Snapshot,
    distinct_batches,
    learning_rate_at,
    train,
    training_batches,
    warmup_steps,
)

__all__ = [
    "ContrastSettings",
    "PairInputs",
    "Snapshot",
    "TowerInputs",
    "TrainedPart",
    "distinct",
    "distinct_batches",
    "head_inputs",
    "heads_of",
    "learning_rate_at",
    "load_or_compute",
    "lock_towers",
    "pictures_fingerprint",
    "probe",
    "project",
    "retrieval_ranks",
    "tower_features",
    "towers_sha256",
    "train",
    "training_batches",
    "unit_rows",
    "warmup_steps",
    "whole",
    "whole_inputs",
]
