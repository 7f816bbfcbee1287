"""The one typed configuration tree of the pipeline.

Every command composes and checks all of it before it touches data or a device, so `experiment=X` means the same run to
each of them. YAML files under `configs/` hold values; the types, the documentation of each field and the rules between
fields live here. Nothing heavy is imported: `revision --help` must answer at once.
"""

from revision.schema.choices import (
    MODEL_STEPS,
    STEPS,
    AdapterMethod,
    BadRows,
    ContrastPart,
    Dtype,
    EngineKind,
    GuardPolicy,
    Modality,
    Packing,
    ProjectorStart,
    SearchDirection,
    SearchSampler,
    StageInput,
    Tracker,
    Unfit,
    VisualTokens,
)
from revision.schema.corpus import ContrastConfig, DataConfig, EmbedConfig, EncoderConfig, InspectConfig, SourceConfig
from revision.schema.evaluation import SPREAD, ChatConfig, EvaluateConfig, PushConfig, VerifyConfig
from revision.schema.geometry import AlignConfig, AlignmentConfig, GapConfig
from revision.schema.planning import PlanConfig, PlanDataConfig, SearchConfig
from revision.schema.root import Config, RunConfig
from revision.schema.training import (
    AdapterConfig,
    CheckpointConfig,
    EngineConfig,
    GuardConfig,
    ModelConfig,
    PartConfig,
    PartsConfig,
    ProjectorConfig,
    StageConfig,
)

__all__ = [
    "MODEL_STEPS",
    "SPREAD",
    "STEPS",
    "AdapterConfig",
    "AdapterMethod",
    "AlignConfig",
    "AlignmentConfig",
    "BadRows",
    "ChatConfig",
    "CheckpointConfig",
    "Config",
    "ContrastConfig",
    "ContrastPart",
    "DataConfig",
    "Dtype",
    "EmbedConfig",
    "EncoderConfig",
    "EngineConfig",
    "EngineKind",
    "EvaluateConfig",
    "GapConfig",
    "GuardConfig",
    "GuardPolicy",
    "InspectConfig",
    "Modality",
    "ModelConfig",
    "Packing",
    "PartConfig",
    "PartsConfig",
    "PlanConfig",
    "PlanDataConfig",
    "ProjectorConfig",
    "ProjectorStart",
    "PushConfig",
    "RunConfig",
    "SearchConfig",
    "SearchDirection",
    "SearchSampler",
    "SourceConfig",
    "StageConfig",
    "StageInput",
    "Tracker",
    "Unfit",
    "VerifyConfig",
    "VisualTokens",
]
