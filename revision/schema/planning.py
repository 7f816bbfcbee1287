"""What no output depends on: what `plan` assumes, and how `-m` searches."""

from __future__ import annotations

from dataclasses import dataclass, field

from revision.schema.choices import SearchDirection, SearchSampler


@dataclass
class PlanDataConfig:
    """What `plan` takes for the records of a stage in place of reading them; null: they are read."""

    records: int | None = None  # records in one epoch
    text_tokens: float | None = None  # mean tokens a record, template included and visual tokens left out
    label_tokens: float | None = None  # tokens a record that are learned; null: all of text_tokens
    longest: int | None = None  # tokens of the longest record, visual ones included; null: max_length of the stage


@dataclass
class PlanConfig:
    """`plan`: what the training stages cost, counted from shapes."""

    gpu: str = "h100"  # key of revision/costs/devices.py
    gpus: int | None = None  # GPUs that share the work; null: engine.processes
    mfu: float = 0.4  # assumed: share of the peak that arithmetic reaches
    reserve_gib: float = 4.0  # assumed: memory of a GPU that CUDA, NCCL and fragmentation take
    embed_dim: int | None = None  # of the encoder; null: of a store, or of the configuration of an open_clip model
    sample: int = 1000  # records whose tokens are counted
    pretrain: PlanDataConfig = field(default_factory=PlanDataConfig)
    instruct: PlanDataConfig = field(default_factory=PlanDataConfig)


@dataclass
class SearchConfig:
    """`-m` as a search: Optuna proposes the values of swept overrides, job by job, instead of running them all."""

    trials: int | None = None  # jobs in all, those of earlier calls included; null: a grid
    metric: str = "pretrain.pictures.known.margin"  # <model>.<path in its scores.json>; its `value` is compared
    direction: SearchDirection = SearchDirection.maximize  # which scores are better
    sampler: SearchSampler = SearchSampler.tpe  # tpe: by Optuna's tree-structured Parzen estimator
    at_once: int = 1  # jobs proposed together, for launchers that run several (hydra/launcher=joblib)
    seed: int = 0  # of the proposals; not the run's seed
