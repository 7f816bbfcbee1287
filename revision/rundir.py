"""The folder of a run: `<runs>/<name>/<command>/`, its resolved config, provenance and finish mark.

A command counts as finished when its finish mark carries the fingerprint of the settings asked for now. The settings
of a command are the config fields that change its output, those of the commands it reads from included; the table that
says which is `_settings_of` below, and nothing else in the project knows it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from revision.fields import ALIGNMENT_FIELDS, flat, sources_of_kind, sources_read
from revision.provenance import provenance
from revision.schema import (
    MODEL_STEPS,
    AlignmentMethod,
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

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
FINISHED = "finished.json"

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

# Fields of `contrast` that leave weights and trace alone, and those that change the trace but not the encoder.
NEUTRAL_CONTRAST_FIELDS = {"device"}
_TRACED = {"contrast.frame_energy", "contrast.frame_step", "contrast.probe_interval"}

# Fields of a stage that leave its weights alone; `trainer` is looked into.
NEUTRAL_STAGE_FIELDS = {"reject_budget", "trainer"}


# Fields that a stage's weights depend on only where it met a bad step.
_GUARDED = ("guard.policy", "guard.limit")


def folder(config: Config, command: str) -> Path:
    """Where everything that `command` writes for this run lies."""
    return Path(config.runs) / config.name / command


def start(config: Config, command: str) -> Path:
    """Make the folder of `command`, write config and provenance into it, and take an old finish mark away.

    Every rank may call it; only the main process writes.
    """
    path = folder(config, command)
    path.mkdir(parents=True, exist_ok=True)
    if is_main_process():
        (path / FINISHED).unlink(missing_ok=True)
        write_text(path / CONFIG, OmegaConf.to_yaml(OmegaConf.structured(config)))
        write_json(path / PROVENANCE, provenance())
    return path


def finish(config: Config, command: str, **facts: Any) -> None:
    """Write the finish mark of `command`; `facts` are numbers and names worth reading at a glance.

    Of a stage, `bad_steps` among them says how many the guard has dealt with.
    """
    if is_main_process():
        mark = {
            "command": command,
            "fingerprint": fingerprint(config, command),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "facts": facts,
            "guarded": _is_guarded(config, command, facts),
            "settings": settings(config, command),
        }
        write_json(folder(config, command) / FINISHED, mark)


def settings(config: Config, command: str) -> dict[str, Any]:
    """Every config field that changes the output of `command`, as a flat mapping from dotted name to plain value."""
    return dict(sorted(_settings_of(config, command)))


def identity(config: Config, command: str) -> dict[str, Any]:
    """Those of the settings that the checkpoints of a stage depend on.

    A run that stops at a bad step and one that leaves it out are the same until there is one, which a checkpoint says
    itself. One that rolls back depends on where its checkpoints lie.
    """
    rolls_back = config.guard.policy is GuardPolicy.roll_back
    free = {"guard.limit"} if rolls_back else {*_GUARDED}
    return {name: value for name, value in settings(config, command).items() if name not in free}


def fingerprint(config: Config, command: str) -> str:
    """The sha256 of `settings(config, command)`."""
    return hashlib.sha256(json.dumps(settings(config, command), sort_keys=True).encode()).hexdigest()


def is_finished(config: Config, command: str) -> bool:
    """Whether `command` finished with exactly the settings asked for now, and its output elsewhere is still there."""
    if not (folder(config, command) / FINISHED).is_file() or _differing(config, command):
        return False
    return all(output.is_file() for output in _shared_outputs(config, command))


def require(config: Config, command: str, wanted_by: str) -> Path:
    """The folder of the finished `command`.

    Raises:
        ValueError: it never ran, did not finish, ran with other settings, or lost its output; the sentence says which.
    """
    path = folder(config, command)
    if not (path / CONFIG).is_file() and not (path / FINISHED).is_file():
        state = "never ran there"
    elif not (path / FINISHED).is_file():
        state = "did not finish there"
    elif different := _difference(config, command):
        state = f"ran there with other settings ({different})"
    elif lost := [output for output in _shared_outputs(config, command) if not output.is_file()]:
        state = f"finished there and its output {lost[0]} is gone"
    else:
        return path
    raise ValueError(
        f"`{wanted_by}` reads {path}, but `{command}` {state}: run `revision {command}` with the same overrides first."
    )


def reads_alignment(config: Config, command: str) -> bool:
    """Whether `command` is a stage that reads rows of texts, which the alignment of the run moves."""
    return command in MODEL_STEPS and bool(sources_read(config, command)["text"])


def is_main_process() -> bool:
    """Whether this process is the one that writes: rank 0 of a launcher's processes, or the only one."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def write_text(path: Path, text: str) -> None:
    """Write `path` so that it is there in full or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, in full or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _settings_of(config: Config, command: str) -> Iterator[tuple[str, Any]]:
    """The table of dependencies: what each command reads from the config, from stores, and from other commands."""
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
            yield from _alignment(config, config.alignment.method)
            yield from _stores(config, [data.texts, data.statistics])
        case "gap":
            yield from _fields(config, "seed", "gap", "data.pairs")
            yield from _settings_of(config, "align")
            for method in config.gap.compare:
                yield from _alignment(config, AlignmentMethod[method])
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
            read = [name for name in vars(EvaluateConfig()) if name not in NEUTRAL_EVALUATE_FIELDS]
            yield from _fields(config, *(f"evaluate.{name}" for name in read))
            # A stage that is no step of the run is not scored.
            scored = [name for name in config.evaluate.models if name not in MODEL_STEPS or name in config.run.steps]
            yield "evaluate.models", scored
            yield from _fields(config, "data.naming", "data.questions", "data.pictures", "data.names")
            yield from _stores(config, [name for name in (data.pictures, data.names) if name])
            for model in scored:
                yield from _model(config, model)
        case _:
            raise AssertionError(f"{command} leaves no output that others read")


def _alignment(config: Config, method: AlignmentMethod) -> Iterator[tuple[str, Any]]:
    names = ALIGNMENT_FIELDS[method]
    yield from _fields(config, *("seed" if name == "seed" else f"alignment.{name}" for name in names))


def _stage(config: Config, command: str, stage: StageConfig) -> Iterator[tuple[str, Any]]:
    # Engines differ in rounding, and in what a checkpoint is.
    yield from _fields(config, "seed", "model", "guard", "engine.kind", "engine.options")
    trainer = {**config.trainer, **stage.trainer}
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
    if config.encoder.model == f"local-dir:{_contrast_output(config)}":
        yield from (found for found in _settings_of(config, "contrast") if found[0] not in _TRACED)


def _contrast_output(config: Config) -> Path:
    return Path(config.contrast.output) if config.contrast.output else folder(config, "contrast") / "encoder"


def _shared_outputs(config: Config, command: str) -> list[Path]:
    """The last file of each output that `command` leaves outside of the run, where it can be lost by itself."""
    if command == "contrast":
        return [_contrast_output(config) / "open_clip_config.json"]
    if command == "embed":
        stores = Path(config.data.stores) / config.encoder.name
        records = [name for name, source in config.data.sources.items() if source.embeddings is None]
        return [stores / name / "manifest.json" for name in config.embed.sources or records]
    if command == "align" and config.align.export:
        return [Path(config.align.export) / "export.json"]
    return []


def _recipe(config: Config) -> Iterator[tuple[str, Any]]:
    yield from _fields(config, "data.folder", "data.recipe", "data.recipe_options")
    if config.data.needs:  # where there are none, nothing says so: runs from before the field stay finished
        yield from _fields(config, "data.needs")


def _fields(config: Config, *names: str) -> Iterator[tuple[str, Any]]:
    for name in names:
        value: Any = config
        for part in name.split("."):
            value = value[part] if isinstance(value, dict) else vars(value)[part]
        yield from flat(value, name)


def _is_guarded(config: Config, command: str, facts: Mapping[str, Any]) -> bool:
    """Whether the guard may have dealt with a bad step of the command, or of a stage of this run that it reads."""
    read = config.evaluate.models if command == "evaluate" else []
    read = [str(vars(config)[command].init)] if command in MODEL_STEPS else read
    marks = [folder(config, model) / FINISHED for model in read if model in MODEL_STEPS]
    before = [not mark.is_file() or json.loads(mark.read_text()).get("guarded", True) for mark in marks]
    return bool(facts.get("bad_steps")) or any(before)


def _differing(config: Config, command: str) -> list[str]:
    """The fields in which the finished command and the settings asked for now differ, those that matter."""
    mark = json.loads((folder(config, command) / FINISHED).read_text())
    if mark["fingerprint"] == fingerprint(config, command):
        return []
    then, now = mark["settings"], settings(config, command)
    free = () if mark.get("guarded", True) else _GUARDED
    return [name for name in sorted({*then, *now}) if name not in free and then.get(name) != now.get(name)]


def _difference(config: Config, command: str) -> str:
    """The first fields in which the finished command and the settings asked for now differ.

    A field that only one of them has, such as one of another alignment's, is named where there is no other.
    """
    then = json.loads((folder(config, command) / FINISHED).read_text())["settings"]
    now = settings(config, command)
    fields = _differing(config, command)
    fields = [name for name in fields if name in then and name in now] or fields
    shown = [f"{name} was {then.get(name)}, is now {now.get(name)}" for name in fields[:3]]
    return "; ".join(shown) + (f"; and {len(fields) - 3} more" if len(fields) > 3 else "")
