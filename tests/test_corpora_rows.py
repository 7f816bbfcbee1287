"""Rows of corpora that are not as they should be: each is rejected with the reason, and none stops a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import CAPTIONS, asked, caption_rows, rows_of, talk_rows

# isort: split
import densefusion
import llava_instruct
import llava_pretrain
import text

HALF = "half \ud83d"


def reasons(out: Path) -> list[str]:
    return [row["reason"] for row in rows_of(out / "rejected.jsonl")]


@pytest.mark.parametrize("recipe", [llava_pretrain, densefusion])
def test_half_a_surrogate_pair_costs_its_row_alone(tmp_path: Path, recipe: Any) -> None:
    rows: list[Any] = [
        {"image": f"{n}.jpg", "image_path": f"{n}.jpg", "caption": said, "conversations": asked("<image>", said)}
        for n, said in enumerate([CAPTIONS[0], HALF, CAPTIONS[1], CAPTIONS[2]])
    ]
    rows[2] |= {"image": f"{HALF}.jpg", "image_path": f"{HALF}.jpg"}
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, "a text", None]))
    out = tmp_path / "out"
    counts = recipe.main(["--out", str(out), "--source", str(tmp_path / "s.jsonl")])
    assert counts["texts"] == counts["pairs"] == 2 and counts["rejected"] == 4
    assert [one["text"] for one in rows_of(out / "texts.jsonl")] == [CAPTIONS[0], CAPTIONS[2]]
    assert [one["id"].rpartition("-")[2] for one in rows_of(out / "texts.jsonl")] == ["0000000", "0000003"]
    pair = "it holds half a surrogate pair, which no file can store: "
    said, image, *shapes = reasons(out)
    assert said.startswith(pair) and said.endswith(r"half \ud83d'") and image.startswith(pair)
    assert shapes == ["it is str, not a mapping", "it is NoneType, not a mapping"]


def test_half_a_surrogate_pair_in_a_picture_that_is_looked_for(tmp_path: Path) -> None:
    rows = caption_rows()[:2]
    rows[0]["image"] = f"{HALF}.jpg"
    (tmp_path / "s.json").write_text(json.dumps(rows))
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "out/images/1.jpg").write_bytes(b"")
    arguments = ["--out", str(tmp_path / "out"), "--source", str(tmp_path / "s.json"), "--check-images"]
    assert llava_pretrain.main(arguments)["texts"] == 1
    assert reasons(tmp_path / "out") == [r"picture images/half \ud83d.jpg does not exist"]


def test_half_a_surrogate_pair_beside_the_turns(tmp_path: Path) -> None:
    """What a turn holds besides its text is written too."""
    rows = talk_rows()[:3]
    rows[2]["conversations"][0]["note"] = HALF
    (tmp_path / "s.json").write_text(json.dumps(rows))
    counts = llava_instruct.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path / "s.json")])
    assert counts["conversations"] == 2 and "half a surrogate pair" in reasons(tmp_path / "out")[0]


def test_half_a_surrogate_pair_in_running_text_costs_its_piece(tmp_path: Path) -> None:
    rows = [{"text": f"{CAPTIONS[0]} Some {HALF} of a pair stands in here. {CAPTIONS[1]}"}, "no mapping"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    text.main(["--out", str(out), "--source", str(tmp_path / "t.jsonl"), "--level", "sentence"])
    assert [one["text"] for one in rows_of(out / "texts.jsonl")] == CAPTIONS[:2]
    assert reasons(out) == ["it holds half a surrogate pair, which no file can store", "it is str, not a mapping"]
