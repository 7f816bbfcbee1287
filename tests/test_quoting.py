"""Values that Hydra or the shell would read as something else: what the command line says to type does work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from revision.cli import main
from revision.cli.quoting import for_shell, written

ODD = [
    ("chat.prompt", "What's this?", "What's this?"),
    ("chat.prompt", "It's $5!?", "It's $5!?"),
    ("chat.prompt", 'Is it a "cat"? (yes/no)', 'Is it a "cat"? (yes/no)'),
    ("chat.image", "photos (2)/1.jpg", "photos (2)/1.jpg"),
    ("chat.image", "my photos/dog, asleep.png", "my photos/dog, asleep.png"),
    ("chat.image", "~/x.jpg", str(Path("~/x.jpg").expanduser())),
    ("pretrain.prompts", "[<image>]", ["<image>"]),
    ("pretrain.prompts", '[<image> a b, "What?<image>"]', ["<image> a b", "What?<image>"]),
    ("evaluate.naming_answer", "This is {text}.", "This is {text}."),
    ("data.sources.texts.records", "hf://foo/bar?split=train", "hf://foo/bar?split=train"),
]


def read(word: str) -> tuple[str, Any]:
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    return override.key_or_group, override.value()


@pytest.mark.parametrize(("name", "value", "meant"), ODD)
def test_a_value_that_hydra_refuses_is_told_how_to_be_typed(
    name: str, value: str, meant: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", f"{name}={value}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is not an override" not in said
    found = re.search(r"in a shell, (?:type )?(.*?)(?: in its place)?\.\n", said)
    assert found is not None, said
    (word,) = shlex.split(found[1])
    assert read(word) == (name, meant)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("seeed=What?", "no field 'seeed' (did you mean 'seed'?)."),
        ("alignment=c3?", "group 'alignment' has no option 'c3?' (did you mean 'c3'?)"),
    ],
)
def test_a_wrong_name_is_told_before_its_value(typed: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", typed]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "value",
    ["plain words", "", " ", "1", "1e-3", "null", "true", "a,b", "[x]", "{text}", "<image>", "it's", 'a "b" c', "a\\",
     "language_model\\.layers\\.3\\..*", "#", "x=y", "é", ["a,b", "c"], {"a": "#", "b": [1, None, True]}, 0.5, None],
)  # fmt: skip
def test_written_values_are_read_back_by_shell_and_hydra(value: Any) -> None:
    (word,) = shlex.split(for_shell(f"x={written(value)}"))
    assert read(word) == ("x", value)


def test_what_can_be_typed_as_it_is_has_no_quotes() -> None:
    for value in ("data/nano/texts.jsonl", "This is it.", "hf-hub:timm/ViT", "2026-01-01"):
        assert written(value) == value
    assert for_shell("gap.neighbours=[1,2]") == "gap.neighbours=[1,2]"
