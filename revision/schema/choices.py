"""Names that a field can be chosen from."""

from __future__ import annotations

from enum import Enum

STEPS = ("contrast", "embed", "align", "gap", "pretrain", "instruct", "evaluate")  # commands that `run` can start
MODEL_STEPS = ("pretrain", "instruct")  # those that make a model, by whose names others refer to it


class Modality(Enum):
    """What a record of a source is: a text or an image."""

    text = "text"
    image = "image"  # or what else the image side of an added kind of encoder reads: sound, video, ...


class Dtype(Enum):
    """Floating-point type of weights and arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ContrastPart(Enum):
    """What of a dual encoder `contrast` trains: the heads behind locked towers, or all parameters."""

    heads = "heads"
    all = "all"


class BadRows(Enum):
    """What becomes of rows of a store that have no direction: zero, NaN or infinite ones."""

    error = "error"
    skip = "skip"


class VisualTokens(Enum):
    """How one embedding becomes K visual tokens: K copies of one projection (the authors' code), or K others."""

    repeat = "repeat"
    slots = "slots"


class StageInput(Enum):
    """What stage 1 reads as its image: aligned text embeddings (ReVision), or real pairs (upper bound)."""

    text = "text"
    pairs = "pairs"


class ProjectorStart(Enum):
    """How a fresh projector begins: as drawn, or with its last layer solved for on the texts of stage 1."""

    random = "random"
    regression = "regression"


class Packing(Enum):
    """How samples become a batch: padded to the longest of them, or packed into one row without padding."""

    none = "none"
    packed = "packed"


class Unfit(Enum):
    """What becomes of a sample that is longer than `max_length` or has no label."""

    error = "error"
    drop = "drop"
    cut_turns = "cut_turns"


class AdapterMethod(Enum):
    """Low-rank adapters of the LLM: LoRA (2106.09685), DoRA (2402.09353), QLoRA on a 4-bit base (2305.14314)."""

    none = "none"
    lora = "lora"
    dora = "dora"
    qlora = "qlora"


class EngineKind(Enum):
    """How several processes share a training step: what each holds whole, and what in pieces."""

    ddp = "ddp"  # everything whole; with one process, no engine at all
    zero1 = "zero1"  # DeepSpeed: optimizer states in pieces
    zero2 = "zero2"  # and gradients
    zero3 = "zero3"  # and weights
    zero3_offload = "zero3_offload"  # and all of them in the memory of the host
    fsdp2 = "fsdp2"  # PyTorch's own: weights, gradients and optimizer states in pieces


class Tracker(Enum):
    """Where training curves go besides the run folder."""

    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"
    trackio = "trackio"


class GuardPolicy(Enum):
    """What becomes of a training step whose loss is no number, or a spike."""

    stop = "stop"
    skip = "skip"
    roll_back = "roll_back"


class SearchSampler(Enum):
    """How a search proposes values: Optuna's tree-structured Parzen estimator, or at random."""

    tpe = "tpe"
    random = "random"


class SearchDirection(Enum):
    """Which scores are better."""

    maximize = "maximize"
    minimize = "minimize"
