"""Rules of the two training stages: what trains and how fast, packing, and the engine."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from revision.fields import sources_of_kind, trainer_of
from revision.rules.sentences import IMAGE, broken, one_of, value_of
from revision.schema import (
    MODEL_STEPS,
    AdapterMethod,
    Config,
    EngineKind,
    Modality,
    Packing,
    ProjectorStart,
    StageConfig,
    StageInput,
    Unfit,
)

PARTS = ("projector", "llm", "adapter")
_SPLITTING = (EngineKind.zero3, EngineKind.zero3_offload, EngineKind.fsdp2)  # no process has all of the weights


def check_stages(config: Config) -> None:
    """Lengths, packing, prompts, and what a stage starts from and reads."""
    for command, stage in (("pretrain", config.pretrain), ("instruct", config.instruct)):
        if stage.max_length <= config.model.num_visual_tokens:
            raise broken(
                f"{command}.max_length", stage.max_length,
                f"more than model.num_visual_tokens = {config.model.num_visual_tokens}, so that text fits beside them",
            )  # fmt: skip
        _check_packing(config, command, stage)
        for prompt in stage.prompts:
            if prompt.count(IMAGE) != 1:
                raise broken(f"{command}.prompts", prompt, f"{IMAGE} exactly once, where the picture goes")
    if config.pretrain.unfit is Unfit.cut_turns:
        raise broken("pretrain.unfit", "cut_turns", "error or drop: a caption is one turn, and is never cut")
    if not config.pretrain.prompts:
        raise broken("pretrain.prompts", "[]", f"at least one user turn, such as {IMAGE}")
    if config.pretrain.init in MODEL_STEPS:
        raise broken("pretrain.init", config.pretrain.init, "null or a model's folder: no command comes before it")
    if config.instruct.init == "instruct":
        raise broken("instruct.init", "instruct", "pretrain, null or a model's folder: it cannot start from itself")
    if config.pretrain.input is StageInput.pairs and (
        config.data.pairs is None or not sources_of_kind(config, Modality.image)
    ):
        raise broken(
            "pretrain.input", "pairs",
            "backed by data.pairs and data.conversation_sources of kind image, which this corpus lacks",
        )  # fmt: skip
    if config.instruct.start is ProjectorStart.regression:
        raise broken("instruct.start", "regression", "random: the texts to begin from are those of pretrain")
    if config.pretrain.start is ProjectorStart.regression and config.pretrain.init is not None:
        raise broken("pretrain.start", "regression", "random where pretrain.init is set: it has begun already")
    for command, stage in (("pretrain", config.pretrain), ("instruct", config.instruct)):
        if stage.start_steps < 0:
            raise broken(f"{command}.start_steps", stage.start_steps, "at least 0")
        if stage.start_steps and stage.start is not ProjectorStart.regression:
            raise broken(
                f"{command}.start_steps", stage.start_steps, "0, or pretrain.start=regression, whose steps they are"
            )
    if config.instruct.noise_std and not sources_of_kind(config, Modality.text):
        raise broken(
            "instruct.noise_std", config.instruct.noise_std,
            "0 where none of data.conversation_sources is of kind text: pictures are read without noise",
        )  # fmt: skip


def _check_packing(config: Config, command: str, stage: StageConfig) -> None:
    tokens, order = stage.pack_tokens, trainer_of(config, command).get("train_sampling_strategy", "random")
    if stage.packing is Packing.none:
        if tokens is not None:
            raise broken(f"{command}.pack_tokens", tokens, f"null where {command}.packing is none: rows are padded")
        return
    if tokens is not None and tokens < stage.max_length:
        raise broken(
            f"{command}.pack_tokens", tokens,
            f"at least {command}.max_length = {stage.max_length}, so that the longest sample fits into one row",
        )  # fmt: skip
    if order != "random":
        raise broken(
            f"{command}.trainer.train_sampling_strategy", order,
            f"random where {command}.packing is packed: packs have an order of their own, without padding to save",
        )  # fmt: skip


def check_parts(config: Config) -> None:
    """What trains, the rates of its parts, and the adapter."""
    adapter, stages = config.adapter, {"pretrain": config.pretrain, "instruct": config.instruct}
    for command, stage in stages.items():
        field, patterns = f"{command}.train", [entry for entry in stage.train if re.search(r"\W", entry)]
        if not stage.train or len(set(stage.train)) < len(stage.train):
            raise broken(field, stage.train, f"at least one of {', '.join(PARTS)}, each once")
        for entry in stage.train:
            if entry not in patterns:  # the name of a parameter has dots, so a mere word matches none
                one_of(field, entry, PARTS)
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise broken(field, pattern, f"a part or a regular expression, which it is not ({error})") from error
        if "adapter" in stage.train:
            _check_adapter(config, command, stage, patterns)
        rates = dict(_rates(command, stage))
        if rates and "optimizer" in config.engine.options:
            raise broken(
                "engine.options.optimizer",
                config.engine.options["optimizer"],
                f"left out where {min(rates)} is: it would know no rates of parts",
            )
        for name, value in rates.items():
            part = name.split(".")[2]
            if part not in stage.train and (part == "adapter" or not patterns):
                raise broken(name, value, f"null, since {field} = {stage.train} leaves {part} out")
            if not math.isfinite(value) or value < 0:
                raise broken(name, value, "a finite number of at least 0")
    if adapter.method is not AdapterMethod.none and not any("adapter" in stage.train for stage in stages.values()):
        raise broken(
            "adapter.method", adapter.method.name, "none where neither pretrain.train nor instruct.train names adapter"
        )
    if not adapter.targets:
        raise broken("adapter.targets", "[]", "[all-linear], or names of linear layers")


def _check_adapter(config: Config, command: str, stage: StageConfig, patterns: list[str]) -> None:
    field = f"{command}.train"
    if "llm" in stage.train:
        raise broken(field, stage.train, "without llm or without adapter: an adapter trains in the LLM's stead")
    if config.adapter.method is AdapterMethod.none:
        raise broken("adapter.method", "none", f"lora, dora or qlora where {field} names adapter")
    kind, method = config.engine.kind, config.adapter.method
    if kind in _SPLITTING and (kind is EngineKind.fsdp2 or method is not AdapterMethod.lora):
        raise broken(
            "engine.kind", kind.name,
            f"ddp, zero1 or zero2 where {field} names adapter and adapter.method is {method.name}: it keeps weights in "
            "pieces (lora works under zero3 too)",
        )  # fmt: skip
    if config.adapter.keep and (stage.init is None or patterns):
        why = f"{field} holds regular expressions" if patterns else f"{command}.init is null"
        raise broken("adapter.keep", "true", f"false where {why}: the adapter alone would be of no use")


def _rates(command: str, stage: StageConfig) -> Iterator[tuple[str, float]]:
    """Every rate and decay that a part of the stage has of its own, with the name of its field."""
    for part, values in vars(stage.parts).items():
        for name, value in vars(values).items():
            if value is not None:
                yield f"{command}.parts.{part}.{name}", value


def check_engine(config: Config) -> None:
    """That `engine.kind` alone decides on the engine."""
    engine = config.engine
    if engine.options and engine.kind is EngineKind.ddp:
        raise broken("engine.options", engine.options, "{} where engine.kind is ddp, whose settings are in trainer")
    zero = engine.options.get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) else {}
    decided = {f"zero_optimization.{name}": value for name, value in zero.items() if name == "stage"}
    decided |= {name: value for name, value in engine.options.items() if name in ("version", "fsdp_version")}
    for name, value in decided.items():
        raise broken(f"engine.options.{name}", value, "left out: engine.kind decides it")
    for place in ("trainer", "pretrain.trainer", "instruct.trainer"):
        for name in ("deepspeed", "fsdp", "fsdp_config"):
            if name in (held := value_of(config, place)):
                raise broken(
                    f"{place}.{name}", held[name], "left out: choose engine=zero2 or the like, and engine.options"
                )
