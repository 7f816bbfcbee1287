"""The multimodal LLM, its two training stages, and what keeps a long run from harm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from revision.schema.choices import (
    AdapterMethod,
    EngineKind,
    GuardPolicy,
    Packing,
    ProjectorStart,
    StageInput,
    Unfit,
    VisualTokens,
)


@dataclass
class ProjectorConfig:
    """The map from the sphere into the LLM's embedding space (ReVision v3, App. H.2: a 2-layer MLP with GELU)."""

    depth: int = 2  # linear layers
    hidden_size: int | None = None  # of the layers in between; null: the LLM's hidden size
    input_scale: float | None = None  # factor on the unit vector; null: sqrt(d), so that coordinates are of order one
    output_norm: bool = True  # LayerNorm at the end, scaled to the spread of the LLM's token embeddings


@dataclass
class ModelConfig:
    """The multimodal LLM: a causal LM, a projector and visual tokens."""

    llm: str = MISSING  # folder or hub name of a causal LM
    num_visual_tokens: int = 4  # that one embedding becomes
    visual_tokens: VisualTokens = VisualTokens.slots  # copies of one projection (the authors' code), or each another
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    chat_template: str | None = None  # file; null: the LLM's own, or ours where it marks no answer
    table_multiple: int | None = None  # the LLM's table grows to a multiple of this for the image token; null: by
    # one row


@dataclass
class AdapterConfig:
    """Adapters on the LLM, trained by each stage whose `train` names `adapter`, and merged when it saves its model."""

    method: AdapterMethod = AdapterMethod.none  # LoRA, DoRA, or LoRA on a 4-bit base
    rank: int = 16  # of the low-rank product
    alpha: float = 32.0  # the low-rank product is scaled by alpha / rank
    dropout: float = 0.0  # on the adapter's input, while training
    targets: list[str] = field(default_factory=lambda: ["all-linear"])  # linear layers of the LLM's decoder: all of
    # them, names such as q_proj, or regular expressions over full names
    keep: bool = False  # also leave the adapter alone, for peft, in <run>/<stage>/adapter, beside the merged model


@dataclass
class PartConfig:
    """How one part learns; null is what `trainer` says."""

    learning_rate: float | None = None  # of this part; null: that of `trainer`
    weight_decay: float | None = None  # of this part; null: that of `trainer`; never on norms and biases


@dataclass
class PartsConfig:
    """The parts of the model. A regular expression in `train` picks parameters of projector or llm."""

    projector: PartConfig = field(default_factory=PartConfig)
    llm: PartConfig = field(default_factory=PartConfig)
    adapter: PartConfig = field(default_factory=PartConfig)


@dataclass
class StageConfig:
    """One training stage; `trainer` holds what differs from the shared `trainer` mapping."""

    init: str | None = None  # model to start from: a command's name, a folder, or null for a fresh projector
    input: StageInput = StageInput.text  # pretrain only: aligned embeddings of texts, or those of the pictures of pairs
    start: ProjectorStart = ProjectorStart.random  # pretrain only: a fresh projector as drawn, or fitted to the texts
    start_steps: int = 0  # pretrain only: steps of start=regression over all layers, once the last one is solved for
    noise_std: float = 0.0  # Gaussian noise on each coordinate of the unit vectors read, new each epoch; instruct: on
    # those of texts alone
    prompts: list[str] = field(default_factory=list)  # pretrain only: user turns to draw from; `<image>` is the picture
    train: list[str] = field(default_factory=list)  # what trains: projector, llm, adapter, or regular expressions that
    # match whole parameter names, such as 'language_model\.model\.layers\.3\..*'
    parts: PartsConfig = field(default_factory=PartsConfig)  # learning rate and weight decay of each part
    max_length: int = 2048  # tokens a sample, visual ones included
    unfit: Unfit = Unfit.error  # a longer sample: stop, drop it and list it, or cut whole turns at its end (or drop)
    reject_budget: float = 0.01  # share of samples that may be dropped before the stage stops
    packing: Packing = Packing.none  # padded to the longest of their batch, or packed into one row
    pack_tokens: int | None = None  # tokens a row, a device's batch; null: of per_device_train_batch_size samples
    limit: int | None = None  # use only the first N records (after the seeded shuffle), for data-size sweeps
    trainer: dict[str, Any] = field(default_factory=dict)  # what differs here from the shared `trainer`


@dataclass
class EngineConfig:
    """What `embed` and training commands run on. They start the processes themselves; training checks what runs."""

    kind: EngineKind = EngineKind.ddp  # how processes share a training step; with one, ddp is no engine at all
    processes: int = 1  # on all machines together
    peak_tflops: float | None = None  # dense peak of one device in 10^12 FLOP/s, for MFU; null: of a known GPU in bf16
    options: dict[str, Any] = field(default_factory=dict)  # further settings: of DeepSpeed, as in its own JSON file; of
    # fsdp2, as in fsdp_config of TrainingArguments; they go into those that `kind` stands for


@dataclass
class CheckpointConfig:
    """Checkpoints of a training command; how many are kept is trainer.save_total_limit."""

    # Between two, where trainer.save_steps does not say when; at least ten times as long as one takes to save. null: at
    # signals only.
    minutes: float | None = 10.0


@dataclass
class GuardConfig:
    """A step whose loss is no number, or a spike: stop, skip its update, or roll back to the last checkpoint."""

    policy: GuardPolicy = GuardPolicy.stop  # stop, skip its update, or roll back to the last checkpoint
    spike: float | None = None  # standard deviations above the median of recent losses, robustly; null: no loss is one
    window: int = 100  # steps that are recent
    limit: int = 10  # bad steps before the run stops whatever the policy
