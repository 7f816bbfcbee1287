"""`revision COMMAND --help`: the fields that the command reads, its own first, each with its value and its meaning."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from typing import Any, get_args, get_origin, get_type_hints

from revision.cli.quoting import for_shell, written
from revision.fields import flat, names_of, rule, trainer_of, type_at
from revision.runs import rundir
from revision.schema import MODEL_STEPS, STEPS, Config

_FIELD = re.compile(r"    (\w+): .*?(?:  # (.*))?$")
_MORE = re.compile(r"    # (.*)$")

_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")

# What commands that leave no output for others look at, besides their own fields: names of fields and of sections.
_LOOKED_AT = {
    "inspect": (
        "seed", "data.name", "data.sources", "data.texts", "data.pairs", "data.conversations",
        "data.conversation_fields", "data.conversation_sources", "model.llm", "model.chat_template",
        "model.num_visual_tokens", "engine.processes", "pretrain.input", "pretrain.prompts",
        *(f"{stage}.{name}" for stage in MODEL_STEPS for name in ("max_length", "limit")),
        *(f"{mapping}.{name}" for mapping in ("trainer", "pretrain.trainer", "instruct.trainer") for name in (
            "max_steps", "num_train_epochs", *_BATCH)),
    ),
    "plan": (
        "seed", "data.texts", "data.pairs", "data.conversations", "data.conversation_fields",
        "data.conversation_sources", "data.sources", "data.stores", "encoder.name", "encoder.kind", "encoder.model",
        "encoder.pretrained", "alignment.method", "model", "adapter.method", "adapter.rank", "adapter.targets",
        "trainer", "engine.kind", "engine.options", "engine.processes", "run.steps", "pretrain.input",
        "pretrain.prompts",
        *(f"{stage}.{name}" for stage in MODEL_STEPS for name in (
            "train", "max_length", "unfit", "packing", "pack_tokens", "limit", "trainer")),
    ),
    "verify": (
        "data.stores", "data.sources.*.embeddings", "encoder.name", "evaluate.models",
        *(f"{stage}.init" for stage in MODEL_STEPS),
    ),
}  # fmt: skip


def fields_help(config: Config, command: str) -> str:
    """Lines `field=value  # meaning`: the section of the command, then what else its output depends on.

    Args:
        config: the composed configuration, whose values are shown.
        command: one of the commands.
    """
    values = dict(_values(config))
    own = [name for name in values if name.split(".")[0] == command]
    read = _read(config, command)
    values = {**read, **values}
    others = sorted((name for name in read if name not in own), key=_place)
    titled = {f"Fields of `{command}`": own, "What else it depends on": others}
    meanings = {name: meaning for name, meaning in _meanings(Config) if meaning}
    parts = []
    for title, names in titled.items():
        keys = (re.sub(r"^data\.sources\.[^.]+", "data.sources.*", name) for name in names)
        lines = [_line(name, values[name], meanings.get(key)) for name, key in zip(names, keys, strict=True)]
        parts.append("\n".join([f"== {title} (field=value) ==", *(lines or ["none"])]))
    rest = f"All fields with their values: `revision {command} --cfg job`; their meanings: revision/schema"
    return "\n\n".join([*parts, rest]) + "\n"


def _read(config: Config, command: str) -> dict[str, Any]:
    """What a command's output depends on; of commands that leave none behind, what they look at."""
    values = dict(_values(config))
    found: dict[str, Any] = {}
    if command in STEPS:
        found = rundir.settings(config, command)
    elif command == "run":
        for step in config.run.steps:
            found |= rundir.settings(config, step)
        looked_at = ("data.recipe", "data.recipe_options", "data.needs", "data.benchmark_recipe", "data.folder")
        found |= _matching(values, looked_at)
    elif command in ("chat", "push"):
        model = vars(vars(config)[command])["model"]
        found = rundir.settings(config, model) if model in MODEL_STEPS else {}
        found |= _matching(values, ("encoder",) if command == "chat" else ())
    else:
        found = _matching(values, _LOOKED_AT[command])
    return {name: values[name] for name in ("name", "runs")} | _as_fields(config, found)


def _values(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every field with its plain value, as `flat` has them, and mappings that hold nothing."""
    inside = part if isinstance(part, dict) else vars(part) if is_dataclass(part) else {}
    if inside:
        for key, value in inside.items():
            yield from _values(value, f"{name}.{key}" if name else key)
    else:
        yield from [(name, {})] if part == {} else flat(part, name)


def _matching(values: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, Any]:
    """The fields of these names, and those inside of sections of these names."""
    return {
        name: value
        for name, value in values.items()
        if any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)
    }


def _as_fields(config: Config, found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as fields that can be typed: what a finish mark knows as one product is several of them."""
    fields: dict[str, Any] = {}
    for name, value in found.items():
        try:
            type_at(name)
        except KeyError:
            section = name.partition(".")[0]
        else:
            fields[name] = value
            continue
        trainer = trainer_of(config, section)
        fields["engine.processes"] = config.engine.processes
        fields |= {f"{section}.trainer.{key}": trainer[key] for key in _BATCH if key in trainer}
    return fields


def _place(name: str) -> tuple[int, str]:
    """Sorts as the schema does."""
    return list(get_type_hints(Config)).index(name.split(".")[0]), name


def _line(name: str, value: Any, meaning: str | None) -> str:
    shown = for_shell(f"{name}={written(value)}")
    return f"{shown:<48}  # {meaning}" if meaning else shown


def _meanings(container: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The comment of each field of a dataclass and of those inside it, by dotted name; `*` stands for any key."""
    comments = _comments(container)
    for name, hint in get_type_hints(container).items():
        choices = rule(hint) if names_of(hint) else ""
        yield f"{prefix}{name}", "; ".join(filter(None, (comments.get(name), choices)))
        if is_dataclass(hint):
            yield from _meanings(hint, f"{prefix}{name}.")
        elif get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            yield from _meanings(get_args(hint)[1], f"{prefix}{name}.*.")


def _comments(container: Any) -> Mapping[str, str]:
    """Comments of a class's fields, from its source: behind a field and going on below it, or above it."""
    found: dict[str, str] = {}
    last, above = None, ""
    for line in inspect.getsource(container).splitlines():
        more = _MORE.match(line)
        if more and last is not None:
            found[last] += f" {more[1]}"
        elif more:
            above = f"{above} {more[1]}".strip()
        else:
            field = _FIELD.match(line)
            if field:
                found[field[1]] = field[2] or above
            last, above = field[1] if field and field[2] else None, ""
    return found
