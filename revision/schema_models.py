"""The part of the schema about what trains inside the LLM, how fast each part learns, and where a model goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class AdapterMethod(Enum):
    """Low-rank adapters of the LLM: LoRA (2106.09685), DoRA (2402.09353), QLoRA on a 4-bit base (2305.14314)."""

    none = "none"
    lora = "lora"
    dora = "dora"
    qlora = "qlora"


@dataclass
class AdapterConfig:
    """Adapters on the LLM, trained by each stage whose `train` names `adapter`, and merged when it saves its model."""

    method: AdapterMethod = AdapterMethod.none
    rank: int = 16
    alpha: float = 32.0  # the low-rank product is scaled by alpha / rank
    dropout: float = 0.0  # on the adapter's input, while training
    # Linear layers of the LLM's decoder: all of them, names such as q_proj, or regular expressions over full names.
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    keep: bool = False  # also leave the adapter alone, for peft, in <run>/<stage>/adapter, beside the merged model


@dataclass
class PartConfig:
    """How one part learns; null is what `trainer` says."""

    learning_rate: float | None = None
    weight_decay: float | None = None  # never on norms and biases, here as in `trainer`


@dataclass
class PartsConfig:
    """The parts of the model. A regular expression in `train` picks parameters of projector or llm."""

    projector: PartConfig = field(default_factory=PartConfig)
    llm: PartConfig = field(default_factory=PartConfig)
    adapter: PartConfig = field(default_factory=PartConfig)


@dataclass
class PushConfig:
    """`push`: a trained model to the Hugging Face hub."""

    model: str = "instruct"  # a stage of this run, or a model's folder
    repo: str | None = None  # owner/name on the hub
    license: str | None = None  # goes into the model card, such as apache-2.0 or other; the card must have one
    private: bool = True  # of a repository that does not exist yet
    upload: bool = False  # false: check the folder and say what would be uploaded
