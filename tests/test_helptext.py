"""Help: every field has a meaning of its own, every line can be typed, and every command shows what it reads."""

from __future__ import annotations

import re
import shlex
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from test_configs import composed

from revision.cli import helptext
from revision.cli.composition import open_hydra
from revision.cli.overrides import check_overrides, refuse_sweeps
from revision.commands import COMMANDS
from revision.fields import flat, names_of, type_at
from revision.schema import Config
from revision.shipped import shipped

MEANINGS = dict(helptext._meanings(Config))
ODD = [
    "chat.prompt=\"What's this?\"", "pretrain.prompts=['<image>','a, b <image>']",
    "evaluate.naming_answer='It is {text}.'", "instruct.trainer.train_sampling_strategy=random",
    "data.sources.texts.fields={id: '#'}", "instruct.trainer.gradient_accumulation_steps=2", "runs='my runs'",
    "instruct.packing=packed",
]  # fmt: skip


def lines(config: Config, command: str) -> list[str]:
    return [line for line in helptext.fields_help(config, command).splitlines() if re.match(r"['\"]?[\w.]+=", line)]


def names(config: Config, command: str) -> set[str]:
    return {shlex.split(line, comments=True)[0].split("=")[0] for line in lines(config, command)}


def leaves(container: Any = Config, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(container).items():
        if is_dataclass(hint):
            found |= leaves(hint, f"{prefix}{name}.")
        elif get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            found |= leaves(get_args(hint)[1], f"{prefix}{name}.*.")
        else:
            found[f"{prefix}{name}"] = hint
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_line_can_be_typed_and_means_what_it_shows(command: str) -> None:
    config = composed("experiment=nano", *ODD)
    shown = lines(config, command)
    assert len(shown) > 5
    words = []
    for line in shown:
        (word,) = shlex.split(line, comments=True)
        words.append(word)
    with open_hydra(command, None) as hydra:
        refuse_sweeps(check_overrides(hydra, words))
    again = composed("experiment=nano", *words)
    values, read_back = dict(flat(config)), dict(flat(again))
    for name in names(config, command):
        if name in values:
            assert read_back[name] == values[name], name


def test_every_field_has_a_meaning() -> None:
    assert [name for name in leaves() if not MEANINGS[name]] == []


def test_a_meaning_is_the_fields_own() -> None:
    assert MEANINGS["adapter.dropout"] == "on the adapter's input, while training"
    assert MEANINGS["adapter.targets"].startswith(
        "linear layers of the LLM's decoder: all of them, names such as q_proj"
    )
    assert MEANINGS["align.bad_rows"].startswith("rows without a direction")
    assert MEANINGS["data.conversation_sources"].endswith("of two that have an id, the first counts")
    assert MEANINGS["run.steps"].startswith("Of contrast, embed")


def test_every_choice_is_named() -> None:
    chosen = {name: names_of(hint) for name, hint in leaves().items() if names_of(hint)}
    assert len(chosen) > 15
    for name, choices in chosen.items():
        assert f"one of {', '.join(choices)}" in MEANINGS[name], name
    assert MEANINGS["pretrain.packing"].endswith("; one of none, packed")


def test_a_meaning_stands_alone_and_says_null() -> None:
    """Lines are sorted, so that none can refer to the one above it; `None` cannot be typed."""
    for name, meaning in MEANINGS.items():
        assert "None" not in meaning, name
        assert not re.match(r"(or|and|of these|the same)\b", meaning), name


@pytest.mark.parametrize("command", ["inspect", "plan", "verify", "push"])
def test_what_a_command_reads_of_the_configuration_is_shown(command: str) -> None:
    config = composed("experiment=nano")
    text = (Path(shipped("configs")).parent / f"revision/commands/{command}.py").read_text()
    shown = names(config, command)
    for read in set(re.findall(r"\bconfig\.(\w+(?:\.\w+)?)", text)):
        try:
            type_at(read)
        except KeyError:  # a method, or `config.json` in a sentence
            continue
        assert any(name == read or name.startswith(f"{read}.") for name in shown), read


def test_commands_without_an_output_show_no_more_than_they_look_at() -> None:
    config = composed("experiment=nano")
    stores = {f"data.sources.{name}.embeddings" for name in config.data.sources}
    models = {"pretrain.init", "instruct.init", "evaluate.models"}
    assert names(config, "verify") == {"verify.path", "name", "runs", "data.stores", "encoder.name", *stores, *models}
    for command in ("inspect", "plan"):
        shown = names(config, command)
        assert {"tracker", "guard.policy", "evaluate.split", "checkpoint.minutes"}.isdisjoint(shown)
        assert {"model.llm", "pretrain.max_length", "instruct.trainer.max_steps", "engine.processes"} <= shown
    assert "instruct.trainer.learning_rate" in names(config, "push")
    assert {"data.recipe", "alignment.method", "evaluate.split"} <= names(config, "run")
    bare = composed("experiment=nano", "push.model=some/folder")
    assert names(bare, "push") == {*(f"push.{name}" for name in vars(bare.push)), "name", "runs"}


def test_a_global_batch_is_shown_as_the_fields_that_make_it() -> None:
    shown = names(composed("experiment=nano", *ODD), "pretrain")
    assert {"engine.processes", "pretrain.trainer.per_device_train_batch_size"} <= shown
    assert "pretrain.global_batch" not in shown
    assert "instruct.trainer.gradient_accumulation_steps" in names(composed(*ODD), "evaluate")
