"""The root of the tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from revision.schema.choices import Tracker
from revision.schema.corpus import ContrastConfig, DataConfig, EmbedConfig, EncoderConfig, InspectConfig
from revision.schema.evaluation import ChatConfig, EvaluateConfig, PushConfig, VerifyConfig
from revision.schema.geometry import AlignConfig, AlignmentConfig, GapConfig
from revision.schema.planning import PlanConfig, SearchConfig
from revision.schema.training import (
    AdapterConfig,
    CheckpointConfig,
    EngineConfig,
    GuardConfig,
    ModelConfig,
    StageConfig,
)


@dataclass
class RunConfig:
    """`run`: commands in order, each a process of its own; finished and unchanged ones are skipped."""

    # Of contrast, embed, align, gap, pretrain, instruct and evaluate, those to run, in the order given.
    steps: list[str] = field(default_factory=lambda: ["embed", "align", "gap", "pretrain", "instruct", "evaluate"])


@dataclass
class Config:
    """The whole pipeline."""

    name: str = "default"  # the run: everything lies under <runs>/<name>/<command>/
    runs: str = "runs"  # folder of all runs
    seed: int = 0  # of every draw but those of `evaluate` and of a search, which have seeds of their own
    tracker: Tracker = Tracker.none  # where training curves go besides the run's folder
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    gap: GapConfig = field(default_factory=GapConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    trainer: dict[str, Any] = field(default_factory=dict)  # transformers.TrainingArguments of both training stages
    engine: EngineConfig = field(default_factory=EngineConfig)
    pretrain: StageConfig = field(default_factory=StageConfig)
    instruct: StageConfig = field(default_factory=StageConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    inspect: InspectConfig = field(default_factory=InspectConfig)
    push: PushConfig = field(default_factory=PushConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    run: RunConfig = field(default_factory=RunConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
