"""Small samples of published corpora in LLaVA's form; importing this makes the recipes importable."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parent.parent / "data_recipes"
sys.path.insert(0, str(RECIPES))

from corpus_parts import keeping  # noqa: E402

Rows = list[dict[str, Any]]
ANY = ["--reject-budget", "1"]  # for samples of which many rows are unusable on purpose
CAPTIONS = ["A cat on a red sofa.", "Two dogs run over the beach.", "An old clock on the wall of a station."]


def rows_of(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def asked(*turns: str) -> Rows:
    return [{"from": ("human", "gpt")[place % 2], "value": said} for place, said in enumerate(turns)]


def caption_rows() -> Rows:
    """LLaVA's form, as LLaVA, Bunny and ShareGPT4V ship captions; two of the five are unusable."""
    rows = [
        {"id": f"00{n}", "image": f"{n}.jpg", "conversations": asked("<image>\nDescribe it.", caption)}
        for n, caption in enumerate(CAPTIONS)
    ]
    rows.append({"id": "003", "image": "3.jpg", "conversations": asked("<image>\nDescribe it.", " ")})
    rows.append({"id": "004", "image": ["4.jpg", "5.jpg"], "conversations": asked("<image>", "Two pictures.")})
    return rows


def talk_rows() -> Rows:
    about = {"image": "a/1.jpg", "conversations": asked("<image>\nWhat?", "A cat.", "Which?", "A red one.")}
    return [
        {"id": 1, **about},
        {"id": 1, **about},  # ids repeat in the source, and pictures too
        {"id": 2, "conversations": asked("Hi.", "Hello.")},
        {"id": 3, "conversations": [{"from": "gpt", "value": "(before)"}, *asked("Hi.", "Hello.")]},
        {"id": 4, "image": "a/2.jpg", "conversations": asked("<image><image>", "Two marks.")},
        {"id": 5, "conversations": asked("What is <image>?", "A mark without a picture.")},
        {"id": 6, "image": "a/3.jpg", "conversations": asked("<image>\nWhat?")},
    ]


def run_killed(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, *, every: int, interval: int = 4) -> int:
    """Runs a recipe that is killed after `every` rows, again and again until it is finished; returns how many kills."""
    step, left, kills = keeping.Keeper.step, every, 0

    def dying(self: keeping.Keeper) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        step(self)

    with monkeypatch.context() as patched:
        patched.setattr(keeping.Keeper.__init__, "__defaults__", (interval,))
        patched.setattr(keeping.Keeper, "step", dying)
        while True:
            left = every
            try:
                make()
            except KeyboardInterrupt:
                kills += 1
                assert kills < 100, "each start goes on after the last note"
            else:
                return kills
