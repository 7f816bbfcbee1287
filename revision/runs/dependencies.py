"""What the output of a command depends on: the fields of the configuration that change it, by command.

Those of the commands and stores that it reads are included. The table is `_settings_of`, and nothing else in the
project knows it; a test asserts for each field what it invalidates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from revision.fields import alignment_fields, flat, sources_of_kind, sources_read, trainer_of
from revision.schema import (
    MODEL_STEPS,
    BadRows,
    Config,
    ContrastConfig,
    EncoderConfig,
    EvaluateConfig,
    GuardPolicy,
    Modality,
    Packing,
    StageConfig,
    StageInput,
)

# Keys of `trainer` that change what is logged, kept or how fast it goes, but not the weights that come out.
NEUTRAL_TRAINER_KEYS = {
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "log_on_each_node", "logging_first_step",
    "logging_steps", "logging_strategy", "project", "save_steps", "save_strategy", "save_total_limit",
}  # fmt: skip

# Keys of `trainer` that only count as their product with engine.processes, and their defaults in TrainingArguments.
_BATCH = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}

# Fields of `evaluate` that leave the scores alone.
NEUTRAL_EVALUATE_FIELDS = {"batch_size", "device"}

LATER_EVALUATE_FIELDS = {"asked", "spare_tokens"}  # that say nothing where they have their defaults

# Fields of `contrast` that leave weights and trace alone, and those that change the trace but not the encoder.
NEUTRAL_CONTRAST_FIELDS = {"device"}
_TRACED = {"contrast.frame_energy", "contrast.frame_step", "contrast.probe_interval"}

# Fields of a stage that leave its weights alone; `trainer` is looked into.
NEUTRAL_STAGE_FIELDS = {"reject_budget", "trainer"}

# Fields that a stage's weights depend on only where it met a bad step.
GUARDED = ("guard.policy", "guard.limit")


def folder(config: Config, command: str) -> Path:
    """Where everything that `command` writes for this run lies."""
    return Path(config.runs) / config.name / command


def settings(config: Config, command: str) -> dict[str, Any]:
    """Every config field that changes the output of `command`, as a flat mapping from dotted name to plain value."""
    return dict(sorted(_settings_of(config, command)))


def identity(config: Config, command: str) -> dict[str, Any]:
    """Those of the settings that the checkpoints of a stage depend on.

    A run that stops at a bad step and one that leaves it out are the same until there is one, which a checkpoint says
    itself. One that rolls back depends on where its checkpoints lie.
    """
    rolls_back = config.guard.policy is GuardPolicy.roll_back
    free = {"guard.limit"} if rolls_back else {*GUARDED}
    return {name: value for name, value in settings(config, command).items() if name not in free}


def fingerprint(config: Config, command: str) -> str:
    """The sha256 of `settings(config, command)`."""
    return hashlib.sha256(json.dumps(settings(config, command), sort_keys=True).encode()).hexdigest()


def reads_alignment(config: Config, command: str) -> bool:
    """Whether `command` is a stage that reads rows of texts, which the alignment of the run moves."""
    return command in MODEL_STEPS and bool(sources_read(config, command)["text"])


def models_read(config: Config, command: str) -> list[str]:
    """The stages of the run whose models `command` reads."""
    if command in MODEL_STEPS:
        return [model for model in MODEL_STEPS if model == vars(config)[command].init]
    return [model for model in MODEL_STEPS if command == "evaluate" and model in config.evaluate.models]


def _settings_of(config: Config, command: str) -> Iterator[tuple[str, Any]]:
    """The table of dependencies: what each command reads from the config, from stores, and from other commands.

    A field that came later says nothing where it has its default: runs from before it stay finished.
    """
    data = config.data
    match command:
        case "contrast":
            read = [name for name in vars(ContrastConfig()) if name not in NEUTRAL_CONTRAST_FIELDS]
            yield from _fields(config, "seed", *(f"contrast.{name}" for name in read))
            yield from _fields(config, "data.contrast_train", "data.contrast_validation")
            yield from _recipe(config)
        case "embed":
            yield from _stores(config, config.embed.sources or list(data.sources))
        case "align":
            yield from _fields(config, "alignment.method", "data.texts", "data.statistics")
            yield from _fields(config, *alignment_fields(config, config.alignment.method).values())
            if config.align.bad_rows is BadRows.skip:
                yield "align.bad_rows", config.align.bad_rows.value
            yield from _stores(config, [data.texts, data.statistics])
        case "gap":
            yield from _fields(config, "seed", "gap", "data.pairs")
            yield from _settings_of(config, "align")
            for method in config.gap.compare:
                yield from _fields(config, *alignment_fields(config, method).values())
            others = [name for domain in config.gap.domains for name in domain.split("/")]
            others += [config.gap.captions] if config.gap.captions else []
            yield from _stores(config, [name for name in others if name in data.sources])  # others are bare stores
        case "pretrain":
            yield from _stage(config, "pretrain", config.pretrain)
            if config.pretrain.input is StageInput.pairs:
                yield from _fields(config, "data.pairs", "data.conversation_sources")
                yield from _stores(config, sources_of_kind(config, Modality.image))
            if reads_alignment(config, "pretrain"):
                yield from _settings_of(config, "align")
        case "instruct":
            yield from _stage(config, "instruct", config.instruct)
            yield from _fields(config, "data.conversations", "data.conversation_fields", "data.conversation_sources")
            yield from _stores(config, data.conversation_sources)
            if reads_alignment(config, "instruct"):
                yield from _settings_of(config, "align")
        case "evaluate":
            usual = vars(EvaluateConfig())
            unsaid = {name for name in LATER_EVALUATE_FIELDS if vars(config.evaluate)[name] == usual[name]}
            read = [name for name in usual if name not in NEUTRAL_EVALUATE_FIELDS | unsaid]
            yield from _fields(config, *(f"evaluate.{name}" for name in read))
            # A stage that is no step of the run is not scored.
            scored = [name for name in config.evaluate.models if name not in MODEL_STEPS or name in config.run.steps]
            yield "evaluate.models", scored
            yield from _fields(config, "data.naming", "data.questions", "data.pictures", "data.names")
            if data.benchmark_recipe:
                yield from _fields(config, "data.benchmark_recipe")
            yield from _stores(config, [name for name in (data.pictures, data.names) if name])
            for model in scored:
                yield from _model(config, model)
        case _:
            raise AssertionError(f"{command} leaves no output that others read")


def _stage(config: Config, command: str, stage: StageConfig) -> Iterator[tuple[str, Any]]:
    # Engines differ in rounding, and in what a checkpoint is.
    yield from _fields(config, "seed", "model", "guard", "engine.kind", "engine.options")
    trainer = trainer_of(config, command)
    yield from _batches(config, command, stage, trainer)
    # Where weights may return to a checkpoint, it matters when there is one.
    weighty = {"save_steps"} if config.guard.policy is GuardPolicy.roll_back else set()
    neutral = NEUTRAL_TRAINER_KEYS.union(_BATCH) - weighty
    weighing = [name for name in vars(StageConfig()) if name not in NEUTRAL_STAGE_FIELDS]
    yield from _fields(config, *(f"{command}.{name}" for name in weighing))
    if "adapter" in stage.train:
        yield from _fields(config, "adapter")
    for key, value in trainer.items():
        if key not in neutral:
            yield f"{command}.trainer.{key}", value
    if stage.init is not None:
        yield from _model(config, stage.init)


def _batches(config: Config, command: str, stage: StageConfig, trainer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Samples or packed rows a step over all processes: how they are shared out changes only the order of sums.

    A packed row is a device's batch whatever the batch size says, which then decides on its tokens, where
    `pack_tokens` does not.
    """
    batch, accumulation = (trainer.get(key, default) for key, default in _BATCH.items())
    packed = stage.packing is Packing.packed
    sizes = [config.engine.processes, accumulation, *([] if packed else [batch])]
    product = math.prod(sizes) if all(isinstance(size, int) for size in sizes) else sizes  # not for us to refuse
    yield f"{command}.{'rows_a_step' if packed else 'global_batch'}", product
    if packed and stage.pack_tokens is None:
        yield f"{command}.trainer.per_device_train_batch_size", batch


def _model(config: Config, model: str) -> Iterator[tuple[str, Any]]:
    """A model is the output of a stage of this run, or a folder, whose path is part of the reader's own fields."""
    if model in MODEL_STEPS:
        yield from _settings_of(config, model)


def _stores(config: Config, sources: list[str]) -> Iterator[tuple[str, Any]]:
    """An embedding store is a function of the records and the encoder alone."""
    yield from _fields(config, "data.stores", *(f"data.sources.{name}" for name in sources))
    yield from _fields(config, *(f"encoder.{name}" for name in vars(EncoderConfig()) if name != "batch_size"))
    yield from _recipe(config)
    if config.encoder.model == f"local-dir:{contrast_output(config)}":
        yield from (found for found in _settings_of(config, "contrast") if found[0] not in _TRACED)


def contrast_output(config: Config) -> Path:
    """The folder of the encoder that `contrast` makes."""
    return Path(config.contrast.output) if config.contrast.output else folder(config, "contrast") / "encoder"


def _recipe(config: Config) -> Iterator[tuple[str, Any]]:
    yield from _fields(config, "data.folder", "data.recipe", "data.recipe_options")
    if config.data.needs:
        yield from _fields(config, "data.needs")


def _fields(config: Config, *names: str) -> Iterator[tuple[str, Any]]:
    for name in names:
        value: Any = config
        for part in name.split("."):
            value = value[part] if isinstance(value, dict) else vars(value)[part]
        yield from flat(value, name)
