"""Rows of corpora that are not as they should be: each is rejected with the reason, and none stops a recipe."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import ANY, CAPTIONS, asked, caption_rows, rows_of, run_killed, talk_rows

# isort: split
import bunny
import densefusion
import internvl_sft
import llava_instruct
import llava_pretrain
import text
import unicorn
from corpus_parts import llava
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
    counts = recipe.main(["--out", str(out), "--source", str(tmp_path / "s.jsonl"), *ANY])
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
    arguments = ["--out", str(tmp_path / "out"), "--source", str(tmp_path / "s.json"), "--check-images", *ANY]
    assert llava_pretrain.main(arguments)["texts"] == 1
    assert reasons(tmp_path / "out") == [r"picture images/half \ud83d.jpg does not exist"]


def test_half_a_surrogate_pair_beside_the_turns(tmp_path: Path) -> None:
    """What a turn holds besides its text is written too."""
    rows = talk_rows()[:3]
    rows[2]["conversations"][0]["note"] = HALF
    (tmp_path / "s.json").write_text(json.dumps(rows))
    counts = llava_instruct.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path / "s.json"), *ANY])
    assert counts["conversations"] == 2 and "half a surrogate pair" in reasons(tmp_path / "out")[0]


def test_half_a_surrogate_pair_in_running_text_costs_its_piece(tmp_path: Path) -> None:
    rows = [{"text": f"{CAPTIONS[0]} Some {HALF} of a pair stands in here. {CAPTIONS[1]}"}, "no mapping"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    text.main(["--out", str(out), "--source", str(tmp_path / "t.jsonl"), "--level", "sentence", *ANY])
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
    arguments = ["--out", str(out), "--source", str(tmp_path / "s.json"), *ANY]
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
        llava_instruct.main(["--out", str(tmp_path / name), "--source", str(tmp_path / "s.json"), *ANY])
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
        arguments = ["--out", str(tmp_path / name), "--source", str(tmp_path / "s.json"), *ANY]
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
    unicorn.main(["--out", str(tmp_path / "out"), "--instruct", str(tmp_path / "i.json"), *ANY])
    assert [row["id"] for row in rows_of(tmp_path / "out/texts.jsonl")] == ["q"]
    assert [row["image"] for row in rows_of(tmp_path / "out/conversations.jsonl")] == ["q"]


def test_a_file_of_which_too_many_rows_are_unusable_leaves_no_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as another file than the one that is meant; what was done is kept for a higher budget."""
    rows: list[Any] = [{"image": f"{n}.jpg", "conversations": asked("<image>", CAPTIONS[n % 3])} for n in range(40)]
    rows[5:8] = [{"no": "caption"}] * 3
    (tmp_path / "s.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--source", str(tmp_path / "s.json")]
    said = (
        r"3 of 40 rows of blip_\S+ became no record, more than --reject-budget 0.05 allows; the first: it has 0 "
        r"answers; a caption row has one; see .*rejected.jsonl.partial, then correct the source or raise "
        r"--reject-budget"
    )
    with pytest.raises(ValueError, match=said):
        llava_pretrain.main(arguments)
    with pytest.raises(ValueError, match=said):
        llava_pretrain.main(arguments)
    assert not (out / "recipe.json").exists() and not (out / "texts.jsonl").exists()
    assert len(rows_of(out / "rejected.jsonl.partial")) == 3
    monkeypatch.setattr(llava, "captions", None)  # nothing is converted again
    assert llava_pretrain.main([*arguments, "--reject-budget", "0.075"])["texts"] == 37
    assert (out / "recipe.json").exists()


def test_the_budget_is_of_each_file(tmp_path: Path) -> None:
    """A small file that is another one does not hide behind large ones."""
    names = list(internvl_sft.SETS)[:2]
    good: dict[str, Any] = {"conversations": asked("Hi.", "Hello.")}
    for name, rows in zip(names, ([good] * 100, [good, {"text": "of another kind"}]), strict=True):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"1 of 2 rows of .*{names[1]} became no record"):
        internvl_sft.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path), "--sets", *names])


def test_what_a_filter_leaves_out_costs_no_budget(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "conversations": asked("<image>", CAPTIONS[n % 3])} for n in range(30)]
    (tmp_path / "s.json").write_text(json.dumps(rows))
    arguments = ["--out", str(tmp_path / "out"), "--source", str(tmp_path / "s.json"), "--filter"]
    assert bunny.main(arguments)["rejected"] == 27


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "-1"], "--keep -1: must be at least 1, or left out"),
        (["--keep", "0"], "--keep 0: must be at least 1"),
        (["--statistics", "-1"], "--statistics -1: must be at least 0, or left out"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--reject-budget", "5"], "--reject-budget 5.0: must be from 0 to 1, or left out"),
        (["--reject-budget", "nan"], "--reject-budget nan: must be from 0 to 1"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(caption_rows()[:3]))
    with pytest.raises(ValueError, match=said):
        llava_pretrain.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path / "s.json"), *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--min-words", "0"], "--min-words 0: must be at least 1, or left out"),
        (["--min-words", "9", "--max-words", "8"], "--max-words 8: must be at least 9, or left out"),
        (["--near", "1.5"], "--near 1.5: must be from 0 to 1, or left out"),
    ],
)
def test_limits_of_texts_out_of_range(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        text.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path), *words])


def test_an_instruction_is_about_the_caption_of_its_id(tmp_path: Path) -> None:
    """Whose caption that is where the row has another one, and how many rows that concerns."""
    pretrain = [{"id": n, "conversations": asked("<image>", said)} for n, said in enumerate(CAPTIONS)]
    talk = asked("<image>\nWhat?", "A tree.")
    instruct = [
        {"id": 0, "caption": f" {CAPTIONS[0]} ", "conversations": talk},
        {"id": 1, "caption": "Another one.", "conversations": talk},
        {"id": 2, "conversations": talk},
        {"id": "q", "caption": "A tall tree.", "conversations": talk},
        {"id": "q", "caption": "A small tree.", "conversations": talk},
    ]
    (tmp_path / "p.json").write_text(json.dumps(pretrain))
    (tmp_path / "i.json").write_text(json.dumps(instruct))
    out = tmp_path / "out"
    unicorn.main(["--out", str(out), "--pretrain", str(tmp_path / "p.json"), "--instruct", str(tmp_path / "i.json")])
    said = {row["id"]: row["text"] for row in rows_of(out / "texts.jsonl")}
    about = [said[row["image"]] for row in rows_of(out / "conversations.jsonl")]
    assert about == [*CAPTIONS, "A tall tree.", "A tall tree."]
    assert json.loads((out / "recipe.json").read_text())["remarks"] == {
        "kept, about the caption that its id had before, which is not the row's own": 2
    }


def test_an_instruction_without_a_mark_gets_one(tmp_path: Path) -> None:
    before = {"from": "gpt", "value": "(before)"}
    rows = [
        {"id": 0, "caption": CAPTIONS[0], "conversations": [before, *asked("What?", "A cat.", "Which?", "A red one.")]},
        {"id": 1, "caption": CAPTIONS[1], "conversations": asked("What?", "Dogs.", "<image>\nHow many?", "Two.")},
        {"id": 2, "caption": CAPTIONS[2], "conversations": asked("<image>\nWhat?", "A clock.")},
    ]
    (tmp_path / "i.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    assert unicorn.main(["--out", str(out), "--instruct", str(tmp_path / "i.json")])["rejected"] == 0
    questions = [
        [turn["value"] for turn in row["conversations"] if turn["from"] == "human"]
        for row in rows_of(out / "conversations.jsonl")
    ]
    assert questions == [["<image>\nWhat?", "Which?"], ["What?", "<image>\nHow many?"], ["<image>\nWhat?"]]
    assert json.loads((out / "recipe.json").read_text())["remarks"] == {
        "kept, with <image> put in front of the first question, since none had it": 1
    }


def test_fewer_records_than_are_to_be_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "s.json").write_text(json.dumps(caption_rows()[:3]))
    arguments = ["--out", str(tmp_path / "out"), "--source", str(tmp_path / "s.json"), "--keep"]
    assert llava_pretrain.main([*arguments, "3"])["texts"] == 3 and "fewer" not in caplog.text
    assert llava_pretrain.main([*arguments, "1000"])["texts"] == 3
    assert "texts has 3 records, fewer than --keep 1,000: all are kept" in caplog.text
