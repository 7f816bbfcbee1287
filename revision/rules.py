"""Rules of the configuration that types cannot express: ranges, choices among names, agreement between fields."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from revision.encoders.kinds import check_kind
from revision.fields import nearest
from revision.ranges import ABOVE, AT_LEAST, AT_MOST
from revision.schema import (
    MODEL_STEPS,
    STEPS,
    AlignmentMethod,
    Config,
    ContrastPart,
    EngineKind,
    Modality,
    Packing,
    SourceConfig,
    StageConfig,
    StageInput,
    Unfit,
)

PARTS = ("projector", "llm")
SPLITS = ("validation", "test")
IMAGE = "<image>"
NAME = "{text}"


def check(config: Config) -> None:
    """Hold the configuration against every rule.

    Raises:
        ValueError: the first broken rule, in one sentence.
    """
    _check_names(config)
    _check_numbers(config)
    _check_encoder(config)
    _check_contrast(config)
    _check_sources(config)
    _check_alignment(config)
    _check_gap(config)
    _check_stages(config)
    _check_engine(config)
    _check_evaluation(config)


def _check_names(config: Config) -> None:
    # The name becomes folders and an override of child processes, so it keeps to characters safe in both.
    if not re.fullmatch(r"[\w.=,+-]+(/[\w.=,+-]+)*", config.name) or {".", ".."} & set(config.name.split("/")):
        raise _broken("name", config.name, "letters, digits and . _ - = , + only, with / between folders")
    if not re.fullmatch(r"[\w.-]+", config.encoder.name):
        raise _broken("encoder.name", config.encoder.name, "letters, digits and . _ - only, since it names a folder")
    if config.encoder.model.startswith("local-dir:") and config.encoder.pretrained is not None:
        raise _broken(
            "encoder.pretrained", config.encoder.pretrained, "null where encoder.model is a local-dir: folder"
        )
    for step in config.run.steps:
        _one_of("run.steps", step, STEPS)
    if len(set(config.run.steps)) < len(config.run.steps):
        raise _broken("run.steps", config.run.steps, "each step once")
    for name, device in (("embed", config.embed), ("contrast", config.contrast), ("evaluate", config.evaluate)):
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device.device):
            raise _broken(f"{name}.device", device.device, "auto, cpu, mps, cuda or cuda:<number>")


def _check_numbers(config: Config) -> None:
    for name in (*AT_LEAST, *ABOVE, *AT_MOST):
        value = _value(config, name)
        if value is not None and not math.isfinite(value):
            raise _broken(name, value, "a finite number")
    for name, low in AT_LEAST.items():
        value = _value(config, name)
        if value is not None and value < low:
            raise _broken(name, value, f"at least {low}")
    for name, low in ABOVE.items():
        value = _value(config, name)
        if value is not None and value <= low:
            raise _broken(name, value, f"greater than {low}")
    for name, high in AT_MOST.items():
        value = _value(config, name)
        if value is not None and value > high:
            raise _broken(name, value, f"at most {high}")


def _check_encoder(config: Config) -> None:
    names = ("pretrained", "text_model", "max_length", "options")
    check_kind(config.encoder.kind, {name: _value(config, f"encoder.{name}") for name in names})


def _check_contrast(config: Config) -> None:
    contrast = config.contrast
    if contrast.train is ContrastPart.heads and contrast.architecture:
        raise _broken("contrast.train", "heads", "all where contrast.architecture is set: random towers are not locked")
    if contrast.train is ContrastPart.all and contrast.heads is not None:
        raise _broken("contrast.heads", contrast.heads, "null where contrast.train is all: more than the heads trains")
    if contrast.init is not None and contrast.architecture:
        raise _broken("contrast.init", contrast.init, "null where contrast.architecture gives a model to start anew")


def _check_sources(config: Config) -> None:
    data = config.data
    known = data.sources
    for name, source in known.items():
        if (source.records is None) == (source.embeddings is None):
            raise _broken(
                f"data.sources.{name}.records", source.records,
                f"a file of records, or else null with data.sources.{name}.embeddings naming existing embeddings; "
                f"embeddings is {source.embeddings or 'null'}",
            )  # fmt: skip
        allowed = ("id", "text") if source.kind is Modality.text else ("id", "image")
        for ours in source.fields:
            _one_of(f"data.sources.{name}.fields", ours, allowed)
    for ours in data.conversation_fields:
        _one_of("data.conversation_fields", ours, ("id", "image", "messages", "conversations"))
    if known:  # a corpus of pairs for `contrast` alone has none
        _source("data.texts", data.texts, known, Modality.text)
        _source("data.statistics", data.statistics, known, Modality.image)
    if data.pictures is not None:
        _source("data.pictures", data.pictures, known, Modality.image)
    if data.names is not None:
        _source("data.names", data.names, known, Modality.text)
    for name in data.conversation_sources:
        _one_of("data.conversation_sources", name, known)
    for name in config.embed.sources or []:
        _one_of("embed.sources", name, known)
        if known[name].records is None:
            raise _broken("embed.sources", name, f"a source of records; {known[name].embeddings} is embedded already")


def _check_alignment(config: Config) -> None:
    alignment = config.alignment
    in_pairs = alignment.method is AlignmentMethod.quantile or AlignmentMethod.quantile.name in config.gap.compare
    if in_pairs and alignment.rank is not None and alignment.rank % 2:
        raise _broken("alignment.rank", alignment.rank, "even for quantile, which matches pairs of coordinates")


def _check_gap(config: Config) -> None:
    gap, known = config.gap, config.data.sources
    if gap.neighbours is not None and (not gap.neighbours or min(gap.neighbours) < 1):
        raise _broken("gap.neighbours", gap.neighbours, "a list of numbers of neighbours, each at least 1")
    if gap.sizes and min(gap.sizes) < 2:
        raise _broken("gap.sizes", gap.sizes, "a list of numbers of rows, each at least 2")
    if not 0 < gap.energy < 1:
        raise _broken("gap.energy", gap.energy, "a share of the trace between 0 and 1, such as 0.9")
    for method in gap.compare:
        _one_of("gap.compare", method, AlignmentMethod.__members__)
    if gap.captions is not None:
        _source("gap.captions", gap.captions, known, Modality.text)
    if len(gap.domains) == 1 or len(set(gap.domains)) < len(gap.domains):
        raise _broken("gap.domains", gap.domains, "two or more different <text source>/<image source>, or []")
    for domain in gap.domains:
        text, slash, image = domain.partition("/")
        if not slash:
            raise _broken("gap.domains", domain, "<text source>/<image source>, such as texts/statistics")
        _source("gap.domains", text, known, Modality.text)
        _source("gap.domains", image, known, Modality.image)


def _check_stages(config: Config) -> None:
    for command, stage in (("pretrain", config.pretrain), ("instruct", config.instruct)):
        if not stage.train:
            raise _broken(f"{command}.train", "[]", f"at least one of {', '.join(PARTS)}")
        for part in stage.train:
            _one_of(f"{command}.train", part, PARTS)
        if stage.max_length <= config.model.num_visual_tokens:
            raise _broken(
                f"{command}.max_length", stage.max_length,
                f"more than model.num_visual_tokens = {config.model.num_visual_tokens}, so that text fits beside them",
            )  # fmt: skip
        _check_packing(config, command, stage)
        for prompt in stage.prompts:
            if prompt.count(IMAGE) != 1:
                raise _broken(f"{command}.prompts", prompt, f"{IMAGE} exactly once, where the picture goes")
    if config.pretrain.unfit is Unfit.cut_turns:
        raise _broken("pretrain.unfit", "cut_turns", "error or drop: a caption is one turn, and is never cut")
    if not config.pretrain.prompts:
        raise _broken("pretrain.prompts", "[]", f"at least one user turn, such as {IMAGE}")
    if config.pretrain.init in MODEL_STEPS:
        raise _broken("pretrain.init", config.pretrain.init, "null or a model's folder: no command comes before it")
    if config.instruct.init == "instruct":
        raise _broken("instruct.init", "instruct", "pretrain, null or a model's folder: it cannot start from itself")
    if config.pretrain.input is StageInput.pairs and (
        config.data.pairs is None or not config.data.conversation_sources
    ):
        raise _broken(
            "pretrain.input", "pairs",
            "backed by data.pairs and data.conversation_sources, which this corpus leaves empty",
        )  # fmt: skip


def _check_packing(config: Config, command: str, stage: StageConfig) -> None:
    tokens, order = stage.pack_tokens, {**config.trainer, **stage.trainer}.get("train_sampling_strategy", "random")
    if stage.packing is Packing.none:
        if tokens is not None:
            raise _broken(f"{command}.pack_tokens", tokens, f"null where {command}.packing is none: rows are padded")
        return
    if tokens is not None and tokens < stage.max_length:
        raise _broken(
            f"{command}.pack_tokens", tokens,
            f"at least {command}.max_length = {stage.max_length}, so that the longest sample fits into one row",
        )  # fmt: skip
    if order != "random":
        raise _broken(
            f"{command}.trainer.train_sampling_strategy", order,
            f"random where {command}.packing is packed: packs have an order of their own, without padding to save",
        )  # fmt: skip


def _check_engine(config: Config) -> None:
    engine = config.engine
    if engine.options and engine.kind is EngineKind.ddp:
        raise _broken("engine.options", engine.options, "{} where engine.kind is ddp, whose settings are in trainer")
    zero = engine.options.get("zero_optimization", {})
    for name, decided in (
        ("zero_optimization.stage", isinstance(zero, Mapping) and "stage" in zero),
        ("version", "version" in engine.options),
        ("fsdp_version", "fsdp_version" in engine.options),
    ):
        if decided:
            raise _broken(f"engine.options.{name}", "set", "left out: engine.kind decides it")
    for place in ("trainer", "pretrain.trainer", "instruct.trainer"):
        for name in ("deepspeed", "fsdp", "fsdp_config"):
            if name in _value(config, place):
                raise _broken(f"{place}.{name}", "set", "left out: choose engine=zero2 or the like, and engine.options")


def _check_evaluation(config: Config) -> None:
    evaluate = config.evaluate
    _one_of("evaluate.split", evaluate.split, SPLITS)
    if not evaluate.models:
        raise _broken("evaluate.models", "[]", f"at least one of {', '.join(MODEL_STEPS)}, or a model's folder")
    if evaluate.naming_prompt.count(IMAGE) != 1:
        raise _broken("evaluate.naming_prompt", evaluate.naming_prompt, f"{IMAGE} exactly once")
    if evaluate.naming_answer.count(NAME) != 1:
        raise _broken("evaluate.naming_answer", evaluate.naming_answer, f"{NAME} exactly once")
    for name in ("naming", "questions"):
        if _value(config, f"data.{name}") is not None and config.data.pictures is None:
            raise _broken("data.pictures", None, f"an image source, since data.{name} asks about its pictures")


def _source(field: str, name: str, known: Mapping[str, SourceConfig], kind: Modality) -> None:
    _one_of(field, name, known)
    if known[name].kind is not kind:
        raise _broken(
            field, name, f"a source of kind {kind.name}; data.sources.{name} is of kind {known[name].kind.name}"
        )


def _one_of(field: str, value: str, names: Iterable[str]) -> None:
    names = list(names)
    if value not in names:
        listed = f"one of {', '.join(names)}" if names else "a source, but data.sources is empty"
        raise _broken(field, value, listed + nearest(value, names))


def _value(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = vars(value)[part]
    return value


def _broken(field: str, value: Any, what: str) -> ValueError:
    return ValueError(f"{field} = {'null' if value is None else value}: must be {what}.")
