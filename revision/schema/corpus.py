"""A corpus on the way to embedding stores: sources, encoder, and what trains or inspects them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from revision.schema.choices import ContrastPart, Dtype, Modality


@dataclass
class SourceConfig:
    """One file of records that `embed` turns into one embedding store, or embeddings that somebody else made."""

    kind: Modality = MISSING  # what a record is
    records: str | None = None  # file, folder, pattern or hf://owner/name?split=...; null: `embeddings` is set
    image_root: str | None = None  # folder that relative image paths start from; null: the folder of the records file
    embeddings: str | None = None  # files of docs/formats.md, made elsewhere; `embed` skips a source that has them
    fields: dict[str, str] = field(default_factory=dict)  # our name (id, text, image) -> the records' own; "#": row


@dataclass
class DataConfig:
    """A corpus: its recipe, its record files and its embedding stores."""

    name: str = MISSING  # of the corpus, for reports
    recipe: str | None = None  # Python file under data_recipes/ that makes the records; null: they exist already
    recipe_options: list[str] = field(default_factory=list)  # extra command-line words for the recipe
    needs: list[str] = field(default_factory=list)  # recipes of other corpora whose records are read here too, each as
    # its command line; `run` starts them first
    folder: str = MISSING  # where the recipe puts its records
    stores: str = MISSING  # where embedding stores lie: <stores>/<encoder.name>/<source>
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    contrast_train: str | None = None  # pairs (id, image, text) that `contrast` trains on
    contrast_validation: str | None = None  # pairs that `contrast` reports retrieval on
    texts: str = "texts"  # text source of stage 1, and text side of the alignment
    statistics: str = "statistics"  # image source whose moments define the alignment
    pairs: str | None = None  # records (id, image, text) for `pretrain.input=pairs`; ids name rows of the sources of
    # kind image among `conversation_sources`
    conversations: str | None = None  # records (id, image?, messages) of stage 2; `image` is an id of one of
    # `conversation_sources`
    conversation_fields: dict[str, str] = field(default_factory=dict)  # as `fields` of a source: id, image, messages
    conversation_sources: list[str] = field(default_factory=list)  # of the pictures of `conversations`: sources of
    # images, or of texts in their place, which the alignment then moves; of two that have an id, the first counts
    benchmark_recipe: str | None = None  # command line of the recipe that makes the records of `questions` and
    # `pictures`, where the corpus' own does not; `run` starts it, and no stage depends on it
    naming: str | None = None  # benchmark records (id, image, name, caption, track, split)
    questions: str | None = None  # benchmark records (id, image, question, answer, kind, track, split, choices?)
    pictures: str | None = None  # image source of the benchmark pictures
    names: str | None = None  # text source of the candidate names, for the encoder's own cosine naming


@dataclass
class EncoderConfig:
    """A contrastive dual encoder: images and texts to unit vectors."""

    name: str = MISSING  # slug; names the folder of its stores
    kind: str = "open_clip"  # open_clip, transformers, llm2clip, or what a package adds (docs/encoders.md)
    model: str = MISSING  # open_clip: architecture, local-dir:/folder or hf-hub:owner/name; else folder or
    # owner/name[@revision] of the hub
    pretrained: str | None = None  # open_clip: hub tag or weights file for an architecture; must be null for local-dir
    text_model: str | None = None  # llm2clip: folder or owner/name[@revision] of its language model
    max_length: int | None = None  # tokens after which a text is cut; null: as many as the text tower reads
    options: dict[str, Any] = field(default_factory=dict)  # anything more, for a kind that a package adds
    dtype: Dtype = Dtype.float32  # of weights and arithmetic
    batch_size: int = 64  # records a pass through the encoder; vectors differ by rounding alone, so stores stay


@dataclass
class EmbedConfig:
    """`embed`: records -> embedding stores."""

    sources: list[str] | None = None  # names in data.sources; null: all
    shard_size: int = 4096  # rows a shard; a kill loses at most one shard of work
    reject_budget: float = 0.01  # share of records that may be rejected before the command stops
    workers: int | None = None  # processes that decode images; 0: the main process; null: on a GPU this process's share
    # of the CPU cores less one, at most 16; on a CPU 0, since the encoder takes the cores
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...


@dataclass
class ContrastConfig:
    """`contrast`: trains a dual encoder, or its heads alone behind locked towers, and follows the modality gap."""

    train: ContrastPart = ContrastPart.heads  # what learns: the heads behind locked towers, or everything
    init: str | None = None  # open_clip folder (open_clip_config.json + weights) to start from
    architecture: dict[str, Any] = field(default_factory=dict)  # as an open_clip_config.json says it: a model to train
    # anew, with contrast.train=all and in place of contrast.init
    output: str | None = None  # where the trained open_clip folder goes; null: <runs>/<name>/contrast/encoder
    heads: str | None = None  # also write the trained heads alone to this safetensors file
    epochs: int = 30  # passes over the training pairs
    batch_size: int = 512  # pairs a step, each held against the others of it
    learning_rate: float = 1e-3  # the highest, after the warm-up; it falls as a cosine
    weight_decay: float = 0.1  # of AdamW
    warmup: float = 0.1  # share of the steps in which the learning rate rises
    logit_scale: float = 100.0  # fixed temperature: CLIP's training ends clamped there; a learned one closes the gap
    learn_logit_scale: bool = False  # begin at logit_scale and learn it
    probe_interval: int = 100  # steps between measurements on the validation pairs, of retrieval and of the fixed frame
    frame_step: int | None = None  # the frame is frozen at the first measurement from this step on; null: after warm-up
    frame_energy: float = 0.95  # share of the variance that the frame's subspace U holds; ours, the paper states none
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...


@dataclass
class InspectConfig:
    """`inspect`: what a corpus holds and how long its samples are, before anyone pays for a GPU."""

    sample: int | None = 10_000  # records of each stage that are tokenized, drawn with `seed`; null: all of them
    show: int = 10  # samples shown as the LLM reads them, of both stages together
    check_images: bool = True  # look whether each picture file is there
