"""Rows of corpora that are not as they should be: each is rejected with the reason, and none stops a recipe."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import CAPTIONS, asked, caption_rows, rows_of, run_killed, talk_rows

# isort: split
import bunny
import densefusion
import llava_instruct
import llava_pretrain
import text
import unicorn
from corpus_parts.duplicates import Duplicates

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


def test_an_image_mark_outside_the_users_turns_is_rejected_and_counted(tmp_path: Path) -> None:
    """Training refuses these: see revision/data/conversation.py."""
    about = {"image": "1.jpg"}
    system = {"from": "system", "value": "You see an <image>."}
    rows = [
        {"conversations": asked("How do I show a picture?", "Use the <image> element.")},
        {**about, "conversations": asked("<image>\nWhat?", "A cat.", "Which?", "This <image>.")},
        {"conversations": [*asked("Hi.", "Hello."), system, *asked("How?", "So.")]},
        {**about, "conversations": asked("<image>\nWhat?", "A cat.")},
        {"conversations": [system, *asked("Hi.", "Hello.")]},  # before the first question, so left out
    ]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--source", str(tmp_path / "s.json")]
    counts = llava_instruct.main(arguments)
    assert counts["conversations"] == 2 and counts["rejected"] == 3
    assert [reason.split(";")[0] for reason in reasons(out)] == [
        f"a turn of the {role} has <image> in it" for role in ("assistant", "assistant", "system")
    ]
    remarks = {"rejected, since they have <image> in an answer or a system turn": 3}
    assert json.loads((out / "recipe.json").read_text())["remarks"] == remarks
    llava_instruct.main([*arguments, "--statistics", "1"])
    assert json.loads((out / "recipe.json").read_text())["remarks"] == remarks, "kept where only statistics are drawn"


def test_remarks_are_counted_over_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"conversations": asked("Hi.", "An <image>." if n % 2 else "Hello.")} for n in range(12)]
    (tmp_path / "s.json").write_text(json.dumps(rows))

    def make(name: str) -> dict[str, int]:
        llava_instruct.main(["--out", str(tmp_path / name), "--source", str(tmp_path / "s.json")])
        counted: dict[str, int] = json.loads((tmp_path / name / "recipe.json").read_text())["remarks"]
        return counted

    assert run_killed(lambda: make("killed"), monkeypatch, every=6) > 1
    assert make("killed") == make("whole") and [*make("whole").values()] == [6]


def test_a_caption_whose_picture_is_missing_does_not_count_as_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its twin with a picture is kept, and it makes no difference where the recipe was killed in between."""
    said = [f"A cat on sofa number {n // 3}, {'red' if n < 18 else 'blue'}." for n in range(36)]  # each three times
    rows = [{"image": f"{n}.jpg", "conversations": asked("<image>", one)} for n, one in enumerate(said)]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    there = [n for n in range(36) if n % 3]  # the first of each three has no picture

    def make(name: str) -> dict[str, int]:
        for n in there:
            (tmp_path / name / "images").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / f"images/{n}.jpg").write_bytes(b"")
        arguments = ["--out", str(tmp_path / name), "--source", str(tmp_path / "s.json")]
        return bunny.main([*arguments, "--filter", "--check-images"])

    assert run_killed(lambda: make("killed"), monkeypatch, every=6) > 2
    counts = make("whole")
    assert make("killed") == counts and counts["texts"] == 12 and counts["rejected"] == 24
    assert [row["image"] for row in rows_of(tmp_path / "whole/images.jsonl")] == [f"{n}.jpg" for n in range(1, 36, 3)]
    found = Counter(reason.split(" ")[0] for reason in reasons(tmp_path / "whole"))
    assert found == {"picture": 12, "it": 12}, "12 without a picture, 12 duplicates of those that have one"
    for file in ("texts", "images", "pairs", "rejected", "statistics"):
        one, other = (tmp_path / folder / f"{file}.jsonl" for folder in ("killed", "whole"))
        assert one.read_bytes() == other.read_bytes()


def test_a_text_is_not_met_before_it_is_kept() -> None:
    for met in (Duplicates(near=None), Duplicates(near=0.8)):
        assert met.fault(CAPTIONS[0], remember=False) is None and met.fault(CAPTIONS[0]) is None
        assert met.fault(CAPTIONS[0], remember=False) == "it is a duplicate"


def test_an_instruction_that_is_rejected_captions_nothing(tmp_path: Path) -> None:
    """The next one of its id brings the caption, so that what it is about is there."""
    talk = asked("<image>\nWhat?", "A tree.")
    rows = [
        {"id": "q", "caption": "A tall tree.", "conversations": [{**talk[0], "note": HALF}, talk[1]]},
        {"id": "q", "caption": "A tall tree.", "conversations": talk},
    ]
    (tmp_path / "i.json").write_text(json.dumps(rows))
    unicorn.main(["--out", str(tmp_path / "out"), "--instruct", str(tmp_path / "i.json")])
    assert [row["id"] for row in rows_of(tmp_path / "out/texts.jsonl")] == ["q"]
    assert [row["image"] for row in rows_of(tmp_path / "out/conversations.jsonl")] == ["q"]
