"""The schema seen by name: what a dotted field holds, and which name was probably meant."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum, EnumType
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from revision.alignment.methods import settings_of
from revision.schema import MODEL_STEPS, AlignmentConfig, Config, Modality, StageConfig, StageInput

# Mappings whose keys the schema does not list: an alignment's class, an encoder's package, transformers (its
# TrainingArguments) or an engine does.
OPEN_MAPPINGS = (
    "alignment.options", "encoder.options", "trainer", "pretrain.trainer", "instruct.trainer", "engine.options",
)  # fmt: skip

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", NoneType: "null"}


def type_at(name: str) -> Any:
    """The type of the field with a dotted name; `Any` inside an open mapping.

    Raises:
        KeyError: there is no such field; its argument is the sentence, with the nearest name.
    """
    here: Any = Config
    seen: list[str] = []
    for part in name.split("."):
        if here is Any:
            return Any
        options = [option for option in alternatives(here) if is_dataclass(option) or get_origin(option) is dict]
        if not options:
            raise KeyError(f"{'.'.join(seen)} is {rule(here)} and has no field '{part}'")
        (container,) = options
        if get_origin(container) is dict:
            here = get_args(container)[1]
        else:
            hints = get_type_hints(container)
            if part not in hints:
                raise KeyError(_unknown(seen, part, hints))
            here = hints[part]
        seen.append(part)
    return here


def rule(hint: Any) -> str:
    """What a field of this type holds, in words: "an integer", "one of none, c3, realign"."""
    if isinstance(hint, EnumType):
        return f"one of {', '.join(names_of(hint))}"
    if isinstance(hint, UnionType):
        return " or ".join(rule(option) for option in get_args(hint))
    if get_origin(hint) is list:
        (item,) = get_args(hint)
        return {str: "a list of strings", int: "a list of integers"}[item]
    if is_dataclass(hint):
        return f"a mapping with the fields {', '.join(get_type_hints(hint))}"
    return _WORDS.get(hint, "a mapping")


def names_of(hint: Any) -> list[str]:
    """The names of an enum's members, also of an optional enum; empty for other types."""
    return [name for option in alternatives(hint) if isinstance(option, EnumType) for name in option.__members__]


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a configuration, or of a part of it that has a name, as a plain value by its dotted name."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flat(part, f"{name}.{key}" if name else key)
    else:
        yield name, value.name if isinstance(value, Enum) else value


def fields_of(class_name: str) -> list[str]:
    """The dotted names of all fields whose type is the class of that name."""
    return [name for name, hint in _all_fields(Config) if isinstance(hint, type) and hint.__name__ == class_name]


def alignment_fields(config: Config, method: str) -> dict[str, str]:
    """The settings of an alignment that the configuration holds, and the dotted names of their fields.

    A field that a method has no use for is not among them.
    """
    homes = {field.name: f"alignment.{field.name}" for field in fields(AlignmentConfig)}
    homes |= {name: f"alignment.options.{name}" for name in config.alignment.options} | {"seed": "seed"}
    return {name: homes[name] for name in settings_of(method) if name in homes}


def alignment_settings(config: Config, method: str) -> dict[str, Any]:
    """The settings of an alignment by name, as `build_alignment` takes them; those that are not set are left out."""
    held = {"seed": config.seed, **vars(config.alignment), **config.alignment.options}
    return {name: held[name] for name in alignment_fields(config, method) if held[name] is not None}


def sources_of_kind(config: Config, kind: Modality) -> list[str]:
    """Those of `data.conversation_sources` that are of a kind, in their order."""
    return [name for name in config.data.conversation_sources if config.data.sources[name].kind is kind]


def stage_of(config: Config, command: str) -> StageConfig:
    """The settings of `pretrain` or `instruct`."""
    return {"pretrain": config.pretrain, "instruct": config.instruct}[command]


def trainer_of(config: Config, command: str) -> dict[str, Any]:
    """What a stage sets of transformers.TrainingArguments: its own and, where they are silent, those of both stages.

    null takes a field out again, so that transformers' default holds.
    """
    merged = {**config.trainer, **stage_of(config, command).trainer}
    return {name: value for name, value in merged.items() if value is not None}


def sources_read(config: Config, stage: str) -> dict[str, list[str]]:
    """Sources whose embeddings a training stage reads, by kind: "text", which the alignment moves, and "image"."""
    if stage == "pretrain" and config.pretrain.input is StageInput.text:
        return {"text": [config.data.texts], "image": []}
    texts = [] if stage == "pretrain" else sources_of_kind(config, Modality.text)
    return {"text": texts, "image": sources_of_kind(config, Modality.image)}


@cache
def argument_names() -> frozenset[str]:
    """The fields of `transformers.TrainingArguments`, read from its file: to import it takes seconds.

    Empty where they are not found there; each stage holds its mapping against the class itself.
    """
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None:
        return frozenset()
    file = Path(package.origin).with_name("training_args.py")
    if not file.is_file():
        return frozenset()
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    bodies = [node.body for node in classes if node.name == "TrainingArguments"]
    fields = [line.target for body in bodies for line in body if isinstance(line, ast.AnnAssign)]
    return frozenset(field.id for field in fields if isinstance(field, ast.Name))


def nearest(word: str, names: Iterable[str]) -> str:
    """A question that offers the nearest of `names`, ready to append to a sentence; empty when none is near."""
    found = get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f" (did you mean '{found[0]}'?)" if found else ""


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a field may hold: those of a union, else the one."""
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


def _unknown(seen: list[str], part: str, siblings: dict[str, Any]) -> str:
    """A sentence with the nearest name: the same one elsewhere is nearer than a like one here."""
    place = ".".join(seen)
    of_trainer = argument_names()
    in_trainer = [f"{place}.trainer.{part}".lstrip(".")] if part in of_trainer else []
    elsewhere = [name for name, _ in _all_fields(Config) if name.rpartition(".")[2] == part]
    if place in MODEL_STEPS:
        same, like = [*in_trainer, *elsewhere], {name: f"{place}.trainer.{name}" for name in of_trainer}
    elif seen:
        same, like = elsewhere, {}
    else:
        same, like = [*elsewhere, *in_trainer], {"experiment": "experiment"}
    like |= {name: name for name in siblings}
    near = same[:1] or [like[name] for name in get_close_matches(part, like, n=1, cutoff=0.6)]
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"{place or 'the configuration'} has no field '{part}'{hint}"


def _all_fields(container: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(container).items():
        yield prefix + name, hint
        if is_dataclass(hint):
            yield from _all_fields(hint, f"{prefix}{name}.")
