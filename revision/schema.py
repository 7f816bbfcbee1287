"""The one typed configuration tree of the pipeline.

Every command composes and checks all of it before it touches data or a device, so `experiment=X` means the same run to
each of them. YAML files under `configs/` hold values; the types, the documentation of each field and the rules between
fields live here. Nothing heavy is imported: `revision --help` must answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from revision.schema_plan import PlanConfig, SearchConfig

STEPS = ("contrast", "embed", "align", "gap", "pretrain", "instruct", "evaluate")  # commands that `run` can start
MODEL_STEPS = ("pretrain", "instruct")  # those that make a model, by whose names others refer to it


class Modality(Enum):
    """What a record of a source is: a text or an image."""

    text = "text"
    image = "image"


class EncoderKind(Enum):
    """Library that the dual encoder comes from."""

    open_clip = "open_clip"


class Dtype(Enum):
    """Floating-point type of weights and arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ContrastPart(Enum):
    """What of a dual encoder `contrast` trains: the heads behind locked towers, or all parameters."""

    heads = "heads"
    all = "all"


class AlignmentMethod(Enum):
    """How text embeddings are mapped onto the image distribution (ReVision v3, Sec. 4 and its rivals)."""

    none = "none"
    mean_shift = "mean_shift"
    c3 = "c3"
    realign = "realign"
    unicorn = "unicorn"
    blockwise = "blockwise"
    diagonal = "diagonal"
    quantile = "quantile"
    gaussian_ot = "gaussian_ot"
    shrunk_ot = "shrunk_ot"
    residual_noise = "residual_noise"


class VisualTokens(Enum):
    """How one embedding becomes K visual tokens: K copies of one projection (the authors' code), or K others."""

    repeat = "repeat"
    slots = "slots"


class StageInput(Enum):
    """What stage 1 reads as its image: aligned text embeddings (ReVision), or real pairs (upper bound)."""

    text = "text"
    pairs = "pairs"


class Tracker(Enum):
    """Where training curves go besides the run folder."""

    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"
    trackio = "trackio"


@dataclass
class SourceConfig:
    """One file of records that `embed` turns into one embedding store, or embeddings that somebody else made."""

    kind: Modality = MISSING
    records: str | None = None  # None where `embeddings` stands in its place
    image_root: str | None = None  # folder that relative image paths start from; None: the folder of the records file
    embeddings: str | None = None  # made elsewhere, in a foreign format of docs/formats.md; `embed` skips it


@dataclass
class DataConfig:
    """A corpus: its recipe, its record files and its embedding stores."""

    name: str = MISSING
    recipe: str | None = None  # Python file under data_recipes/ that makes the records; None: they exist already
    recipe_options: list[str] = field(default_factory=list)  # extra command-line words for the recipe
    folder: str = MISSING  # where the recipe puts its records
    stores: str = MISSING  # where embedding stores lie: <stores>/<encoder.name>/<source>
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    contrast_train: str | None = None  # pairs (id, image, text) that `contrast` trains on
    contrast_validation: str | None = None  # pairs that `contrast` reports retrieval on
    texts: str = "texts"  # text source of stage 1, and text side of the alignment
    statistics: str = "statistics"  # image source whose moments define the alignment
    pairs: str | None = None  # records (id, image, text) for `pretrain.input=pairs`; ids name rows of image sources
    conversations: str | None = None  # records (id, image?, messages) of stage 2; `image` is an id of an image source
    conversation_sources: list[str] = field(default_factory=list)  # image sources that hold those rows
    naming: str | None = None  # benchmark records (id, image, name, caption, track, split)
    questions: str | None = None  # benchmark records (id, image, question, answer, kind, track, split)
    pictures: str | None = None  # image source of the benchmark pictures
    names: str | None = None  # text source of the candidate names, for the encoder's own cosine naming


@dataclass
class EncoderConfig:
    """A contrastive dual encoder: images and texts to unit vectors."""

    name: str = MISSING  # slug; names the folder of its stores
    kind: EncoderKind = EncoderKind.open_clip
    model: str = MISSING  # open_clip architecture, or local-dir:/folder with open_clip_config.json
    pretrained: str | None = None  # hub tag or weights file for an architecture; must be None for local-dir
    dtype: Dtype = Dtype.float32
    batch_size: int = 64


@dataclass
class EmbedConfig:
    """`embed`: records -> embedding stores."""

    sources: list[str] | None = None  # names in data.sources; None: all
    shard_size: int = 4096  # rows a shard; a kill loses at most one shard of work
    reject_budget: float = 0.01  # share of records that may be rejected before the command stops
    workers: int = 0  # processes that decode images; 0: the main process
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...


@dataclass
class ContrastConfig:
    """`contrast`: trains a dual encoder, or its heads alone behind locked towers, and follows the modality gap."""

    train: ContrastPart = ContrastPart.heads
    init: str | None = None  # open_clip folder (open_clip_config.json + weights) to start from
    architecture: dict[str, Any] = field(default_factory=dict)  # or, with train=all, the content of such a json file:
    # `model_cfg` and `preprocess_cfg` of a model that starts from random weights
    output: str | None = None  # where the trained open_clip folder goes; None: runs/<name>/contrast/encoder
    heads: str | None = None  # also write the trained heads alone to this safetensors file
    epochs: int = 30
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.1  # share of the steps
    logit_scale: float = 100.0  # fixed temperature: CLIP's training ends clamped there; a learned one closes the gap
    learn_logit_scale: bool = False
    probe_interval: int = 100  # steps between measurements on the validation pairs, of retrieval and of the fixed frame
    frame_step: int | None = None  # the frame is frozen at the first measurement from this step on; None: after warm-up
    frame_energy: float = 0.95  # share of the variance that U holds; ours, the paper does not state its threshold
    device: str = "auto"  # as embed.device


@dataclass
class AlignmentConfig:
    """`align`: the map from text to image distribution.

    A method takes the fields that it knows (named behind each; docs/alignment.md) and leaves the others alone. Null is
    the method's own default.
    """

    method: AlignmentMethod = AlignmentMethod.realign
    centroid_steps: int = 1  # realign and all below unicorn but diagonal: 1 is the paper; 0 leaves the step out
    until: float | None = None  # the same: iterate until the centroid gap is below this; overrides centroid_steps
    noise_std: float = 0.1264911064  # c3: sqrt(0.016) a coordinate, as in the repository of 2401.08567
    anchor: bool | None = None  # realign: false leaves the first step out
    trace: bool | None = None  # realign: false leaves the second step out
    rank: int | None = None  # blockwise, quantile (even), shrunk_ot: dimension of the leading subspace; null: by energy
    energy: float | None = None  # the same: share of the trace in that subspace; 0.9
    ridge: float | None = None  # blockwise, quantile, gaussian_ot, shrunk_ot: share of mean variance added; 1e-3
    shrinkage: float | None = None  # shrunk_ot: from 0 (Gaussian transport) to 1 (ReAlign); null: estimated
    noise_scale: float | None = None  # residual_noise: factor on the noise of derived covariance; 1
    jitter: float | None = None  # diagonal: standard deviation of noise a coordinate; 0


@dataclass
class AlignConfig:
    """`align`: what it writes besides the alignment; the map itself is set under `alignment`."""

    export: str | None = None  # folder for the aligned text rows as .npy and parquet, in clip-retrieval's layout
    shard_size: int = 1_000_000  # rows a file of the export


@dataclass
class GapConfig:
    """`gap`: geometry before and after alignment."""

    sample: int = 20000  # rows a side that are measured, drawn with `seed`; the cost of cosines grows with its square
    neighbours: list[int] = field(default_factory=lambda: [10, 20])
    compare: list[str] = field(default_factory=list)  # further alignments to fit here and put beside the run's own
    captions: str | None = None  # text source of the captions of data.pairs, under their ids; None: data.texts
    energy: float = 0.9  # share of the trace in the subspace U that pairs are split along; the paper states none
    sizes: list[int] = field(default_factory=list)  # rows a side to fit on, for the sample-size curve; []: no curve
    held_out: int = 2000  # rows a side that the sample-size curve measures on
    domains: list[str] = field(default_factory=list)  # two or more <text source>/<image source> to transfer between
    trials: int = 5  # repetitions of curve and transfer (ReVision v3: 5)


@dataclass
class ProjectorConfig:
    """The map from the sphere into the LLM's embedding space (ReVision v3, App. H.2: a 2-layer MLP with GELU)."""

    depth: int = 2  # linear layers
    hidden_size: int | None = None  # None: the LLM's hidden size
    input_scale: float | None = None  # factor on the unit vector; None: sqrt(d), so that coordinates are of order one
    output_norm: bool = True  # LayerNorm at the end, scaled to the spread of the LLM's token embeddings


@dataclass
class ModelConfig:
    """The multimodal LLM: a causal LM, a projector and visual tokens."""

    llm: str = MISSING  # folder or hub name of a causal LM
    num_visual_tokens: int = 4
    visual_tokens: VisualTokens = VisualTokens.slots
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    chat_template: str | None = None  # file; None: the LLM's own, or ours where it marks no answer


@dataclass
class StageConfig:
    """One training stage; `trainer` holds what differs from the shared `trainer` mapping."""

    init: str | None = None  # model to start from: a command's name, a folder, or null for a fresh projector
    input: StageInput = StageInput.text  # pretrain only
    noise_std: float = 0.0  # pretrain only: Gaussian noise on each coordinate of the unit vectors read, new each epoch
    prompts: list[str] = field(default_factory=list)  # pretrain only: user turns to draw from; `<image>` marks it
    train: list[str] = field(default_factory=list)  # parts that train: projector, llm
    max_length: int = 2048  # tokens a sample, visual ones included
    limit: int | None = None  # use only the first N records (after the seeded shuffle), for data-size sweeps
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass
class EngineConfig:
    """How many processes a training command is expected to run on; checked at start."""

    processes: int = 1
    peak_tflops: float | None = None  # dense peak of one device in 10^12 FLOP/s, for MFU; None: of a known GPU in bf16


@dataclass
class EvaluateConfig:
    """`evaluate`: scores on benchmark pictures."""

    models: list[str] = field(default_factory=lambda: ["pretrain", "instruct"])  # commands or folders
    split: str = "test"  # validation for choices, test for reports
    candidates: int = 100  # names that naming ranks against
    limit: int | None = None  # pictures a track
    question_limit: int | None = None
    naming_prompt: str = "<image>"
    naming_answer: str = "{text}"  # what is scored for a name; {text}: its text in data.names, which the encoder reads
    bootstrap: int = 2000  # resamples for the 95 % intervals
    sheet: int = 24  # pictures on the contact sheet
    max_new_tokens: int = 24
    batch_size: int = 8
    seed: int = 0  # of draws and resamples; not the run's seed, so that runs of all seeds meet the same test
    dtype: Dtype | None = None  # of weights and arithmetic; None: the one the model was saved in
    device: str = "auto"


@dataclass
class ChatConfig:
    """`chat`: an answer in the terminal about a picture file."""

    model: str = "instruct"
    image: str | None = None
    prompt: str | None = None  # one question, then exit; None: a dialogue
    max_new_tokens: int = 64


@dataclass
class RunConfig:
    """`run`: commands in order, each a process of its own; finished and unchanged ones are skipped."""

    steps: list[str] = field(default_factory=lambda: ["embed", "align", "gap", "pretrain", "instruct", "evaluate"])


@dataclass
class Config:
    """The whole pipeline."""

    name: str = "default"  # the run: everything lies under <runs>/<name>/<command>/
    runs: str = "runs"
    seed: int = 0
    tracker: Tracker = Tracker.none
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    gap: GapConfig = field(default_factory=GapConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)
    pretrain: StageConfig = field(default_factory=StageConfig)
    instruct: StageConfig = field(default_factory=StageConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    run: RunConfig = field(default_factory=RunConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
