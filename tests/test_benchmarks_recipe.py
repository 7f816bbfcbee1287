"""The paper's benchmarks from tables in VLMEvalKit's form: questions, pictures, what is left out and why."""

from __future__ import annotations

import base64
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "data_recipes"))

import benchmarks
from benchmark_parts import questions, tables

from revision.evaluation.benchmarks import read_questions
from revision.records import read_images

Rows = list[dict[str, Any]]


def picture(shade: int, kind: str = "JPEG") -> str:
    buffer = BytesIO()
    Image.new("RGB", (24, 16), (shade, 10, 200)).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def write_table(path: Path, rows: Rows) -> None:
    """As pandas writes it: tabs, quoted where a cell holds one or a line break."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def options(index: Any, answer: str = "B", **more: Any) -> dict[str, Any]:
    row = {"index": index, "question": "What is\nshown?", "A": "a dog", "B": "a cat", "answer": answer}
    return row | {"category": "animals", "image": picture(int(str(index)[-1]))} | more


def asks(index: Any, answer: str = "Yes", **more: Any) -> dict[str, Any]:
    row = {"index": index, "question": "Is there a dog?", "answer": answer, "category": "existence"}
    return row | {"image": picture(int(str(index)[-1]))} | more


TABLES: dict[str, Rows] = {
    "MME": [
        asks(1, question="Is there a dog? Please answer yes or no."),
        asks(2, "no", image="1"),  # the picture of row 1
        asks(3, "maybe"),
        asks(4, image="7"),  # of a row that is not there
    ],
    "MMStar": [options(1), options(2, image=picture(1))],  # the same picture twice
    "ScienceQA_VAL": [options(1, hint="Look."), options(2, image="")],
    "ScienceQA_TEST": [
        options(1, C="nan", image=picture(99), category="Velocity, acceleration, and forces"),
        options(2, "C"),  # a choice that is empty
        options(3, "A", B=""),
    ],
    "RealWorldQA": [options(1, image=picture(3, "PNG"))],
    "MMMU_DEV_VAL": [
        options("dev_1", split="dev"),
        options("validation_2", split="validation", question="<image 1> In <image 1>, what?"),
        options("validation_3", split="validation", image=f"['{picture(1)}', '{picture(2)}']"),
        options("validation_4", split="validation", image=f"['{picture(4)}']", A="", B="", answer="['24/7', '3.429']"),
        options("validation_5", split="validation", image=base64.b64encode(b"no picture" * 9).decode()),
        options("validation_6", split="validation", image="*" * 99),
    ],
    "MMMU_Pro_10c": [options(1, "J", **{letter: f"text {letter}" for letter in "ABCDEFGHIJ"})],
    "VisuLogic": [{**options(1, "D", question="Choose from A, B, C, D."), "A": "", "B": ""}],
    "LogicVista": [
        {"index": 0, "question": "Which is next? Select from A-E", "answer": "E", "skill": "inductive",
         "image": picture(1)},
        {"index": 1, "question": "Which two? (A) x (B) y (C) z", "answer": "C, A", "skill": "spatial",
         "image": picture(2)},
        {"index": 2, "question": "Which one?", "answer": "B", "skill": "spatial", "image": picture(3)},
        {"index": 3, "question": "How many?", "answer": "7", "skill": "numerical", "image": picture(4)},
    ],
    "CRPE_EXIST": [
        {"index": 0, "question": "Which?\nA. dog\nB. cat\nC. owl\nD. cow\nAnswer with the letter.", "answer": "(C) owl",
         "category": "exist", "image": picture(1)},
    ],
    "CRPE_RELATION": [
        {"index": 0, "question": "What does it do?\nA. run\nB. sit", "answer": "B. sit", "category": "predicate",
         "image": picture(1)},
    ],
    "POPE": [asks(0, category="adversarial,popular,random"), asks(1, "No", category="random")],
    "HallusionBench": [
        asks("VD_figure_x_0_1_0", **{"l2-category": "figure"}),
        asks("VD_figure_x_0_1_1", "No", **{"l2-category": "figure"}),
        asks("VS_chart_x_0_0_0", image=""),
        asks("odd_0"),
    ],
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "LMUData"
    folder.mkdir()
    for name, rows in TABLES.items():
        write_table(folder / f"{name}.tsv", rows)
    return folder


def rows_of(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_all_eleven_become_questions_that_evaluate_reads(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = benchmarks.main(["--source", str(source), "--out", str(out)])
    assert {name: counts[name] for name in benchmarks.BENCHMARKS} == {
        "mme": 2, "mmstar": 2, "scienceqa": 2, "realworldqa": 1, "mmmu": 2, "mmmu_pro": 1, "visulogic": 1,
        "logicvista": 3, "crpe": 2, "pope": 4, "hallusionbench": 2,
    }  # fmt: skip
    found = read_questions(out / "questions.jsonl", split="test")
    assert list(found) == list(benchmarks.BENCHMARKS)
    shown = {image.id: image.picture for image in read_images(out / "pictures.jsonl")}
    assert {question.image for asked in found.values() for question in asked} == {*shown}
    for path in shown.values():
        Image.open(Path(str(path))).verify()
    assert [path.suffix for path in (out / "images" / "realworldqa").iterdir()] == [".png"]
    assert len([name for name in shown if name.startswith("mmstar")]) == 1
    star = found["mmstar"][0]
    assert star.question == f"What is\nshown?\nA. a dog\nB. a cat\n{questions.LETTER}"
    assert (star.answer, star.choices, star.texts, star.kind) == ("B", ("A", "B"), ("a dog", "a cat"), "animals")
    validation, test = found["scienceqa"]
    assert validation.question.startswith("Hint: Look.\nWhat is") and test.choices == ("A", "B")
    assert {validation.id, test.id} == {"scienceqa_val-1", "scienceqa_test-1"}
    assert validation.image != test.image, "two tables count from 1 both"
    assert test.kind == "Velocity, acceleration, and forces"


@pytest.fixture
def found(source: Path, tmp_path: Path) -> dict[str, Any]:
    benchmarks.main(["--source", str(source), "--out", str(tmp_path / "out")])
    return read_questions(tmp_path / "out" / "questions.jsonl", split="test")


def test_one_picture_is_marked_once(found: dict[str, Any]) -> None:
    marked, open_ended = found["mmmu"]
    assert marked.question.startswith("<image> In the picture, what?\nA. a dog")
    assert (open_ended.answer, open_ended.also, open_ended.choices) == ("24/7", ("3.429",), ())
    assert open_ended.question.endswith(questions.PHRASE)


def test_letters_in_the_text_or_in_the_picture(found: dict[str, Any]) -> None:
    (visual,), (ten,) = found["visulogic"], found["mmmu_pro"]
    assert (visual.answer, visual.choices, visual.texts) == ("D", tuple("ABCD"), ())
    assert (ten.answer, ten.choices) == ("J", tuple("ABCDEFGHIJ"))
    ranged, several, unlisted = found["logicvista"]
    assert (ranged.answer, ranged.choices, ranged.kind) == ("E", tuple("ABCDE"), "inductive")
    assert (several.answer, several.choices) == ("A, C", ())
    assert (unlisted.answer, unlisted.choices) == ("B", tuple(questions.UNLISTED))
    exist, relation = found["crpe"]
    assert (exist.answer, exist.choices) == ("C", tuple("ABCD"))
    assert exist.question.endswith("Answer with the letter."), "told already"
    assert (relation.answer, relation.choices, relation.kind) == ("B", tuple("AB"), "predicate")


def test_yes_and_no_and_their_groups(found: dict[str, Any]) -> None:
    first, second = found["mme"]
    assert first.question.count("yes or no") == 1
    assert (first.answer, second.answer, first.choices) == ("Yes", "No", ("Yes", "No"))
    assert first.groups == second.groups == {"picture": f"existence/{first.image}"}
    assert first.image == second.image
    assert [question.kind for question in found["pope"]] == ["adversarial", "popular", "random", "random"]
    assert len({question.id for question in found["pope"]}) == 4
    assert found["pope"][0].question == f"Is there a dog?\n{questions.YES_OR_NO}"
    one, other = found["hallusionbench"]
    assert one.groups == {"figure": "figure_0_1", "question": "figure_0_0"}
    assert other.groups == {"figure": "figure_0_1", "question": "figure_0_1"}


def test_what_is_left_out_is_listed_with_the_reason(source: Path, tmp_path: Path) -> None:
    benchmarks.main(["--source", str(source), "--out", str(tmp_path / "out")])
    reasons = {row["id"]: row["reason"] for row in rows_of(tmp_path / "out" / "rejected.jsonl")}
    assert reasons.pop("mmmu_dev_val-validation_5").startswith("its picture is not a picture of a format")
    assert reasons == {
        "mme-3": "its answer is 'maybe', neither yes nor no",
        "mme-4": "its picture is that of row 7, which has none",
        "scienceqa_val-2": "it has no picture",
        "scienceqa_test-2": "its answer C is none of two or more choices: it has A, B",
        "scienceqa_test-3": "its answer A is none of two or more choices: it has A",
        "mmmu_dev_val-validation_3": "it has 2 pictures; the paper takes questions about one",
        "mmmu_dev_val-validation_6": "its picture is not base64",
        "logicvista-3": "its answer '7' begins with no letter of a choice",
        "hallusionbench-VS_chart_x_0_0_0": "it has no picture",
        "hallusionbench-odd_0": "its index odd_0 does not end in set, figure and question",
    }


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("Pick.\nA. x\nB. y", "AB"),
        ("(A) x (B) y (C) z", "ABC"),
        ("A) x B) y", "AB"),
        ("Select from A, B, C, and D.", "ABCD"),
        ("Select from A-E", "ABCDE"),
        ("Pick one of the options A to F", "ABCDEF"),
        ("Is it A or B?", "AB"),
        ("Is it a cat?", ""),
        ("Figures B and C are alike", ""),  # no A: these are no choices
    ],
)
def test_letters_that_a_text_lists(text: str, letters: str) -> None:
    assert questions._listed(text) == letters


def test_a_second_call_finds_all_done_and_another_choice_begins_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--source", str(source), "--out", str(tmp_path / "out")]
    with caplog.at_level("INFO"):
        first = benchmarks.main(arguments)
        assert "has md5" in caplog.text and "MMStar.tsv has 2 rows; 1,500 are known" in caplog.text
        with monkeypatch.context() as patch:
            patch.setattr(tables, "read", lambda path: pytest.fail("read again"))
            assert benchmarks.main(arguments) == first
        counts = benchmarks.main([*arguments, "--only", "pope"])
    assert [name for name in counts if name in benchmarks.BENCHMARKS] == ["pope"]
    assert list(read_questions(tmp_path / "out" / "questions.jsonl", split="test")) == ["pope"]


def test_tables_that_are_not_there(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "POPE.tsv").unlink()
    with pytest.raises(
        ValueError, match=r"LMUData holds no POPE\.tsv; download https://.*POPE\.tsv, or leave --source"
    ):
        benchmarks.main(["--source", str(source), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "questions.jsonl").exists()

    def refuse(url: str, timeout: float) -> Iterator[bytes]:
        raise ConnectionError("no network here")

    monkeypatch.setattr(tables.urllib.request, "urlopen", refuse)
    reasons = r"\(no network here; no network here\)"
    with pytest.raises(ValueError, match=rf"POPE\.tsv cannot be fetched {reasons}; download https://"):
        benchmarks.main(["--out", str(tmp_path / "out"), "--only", "pope"])
    write_table(source / "POPE.tsv", [{"index": 1, "question": "Is it?"}])
    with pytest.raises(ValueError, match=r"POPE\.tsv has no column 'answer'; it must be a table of VLMEvalKit"):
        benchmarks.main(["--source", str(source), "--out", str(tmp_path / "out"), "--only", "pope"])
    write_table(source / "POPE.tsv", [asks(1, "perhaps")])
    with pytest.raises(
        ValueError, match=r"no row of .*POPE\.tsv became a question; the first: its answer is 'perhaps'"
    ):
        benchmarks.main(["--source", str(source), "--out", str(tmp_path / "out"), "--only", "pope"])


def test_a_table_is_fetched_whole_or_not_at_all(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first place answers with a part of it, as a connection that breaks off does; the second has it."""
    content = (source / "POPE.tsv").read_bytes()
    asked: list[str] = []

    def answer(url: str, timeout: float) -> BytesIO:
        asked.append(url)
        return BytesIO(content[: len(content) // 2] if benchmarks.VLMEVALKIT[0] in url else content)

    monkeypatch.setattr(tables.urllib.request, "urlopen", answer)
    arguments = ["--out", str(tmp_path / "out"), "--only", "pope"]
    with pytest.raises(ValueError, match="its md5 is not the one that VLMEvalKit gives"):
        benchmarks.main(arguments)
    assert list((tmp_path / "out" / "source").iterdir()) == []
    (table,) = benchmarks.BENCHMARKS["pope"].tables
    known = replace(benchmarks.BENCHMARKS["pope"], tables=(replace(table, md5=(tables.md5_of(source / "POPE.tsv"),)),))
    monkeypatch.setitem(benchmarks.BENCHMARKS, "pope", known)
    asked.clear()
    for _ in range(2):
        assert benchmarks.main(arguments)["pope"] == 4
    assert asked == [f"{place}/POPE.tsv" for place in benchmarks.VLMEVALKIT]
    assert (tmp_path / "out" / "source" / "POPE.tsv").read_bytes() == content


def test_another_table_of_the_same_name_begins_anew(source: Path, tmp_path: Path) -> None:
    arguments = ["--source", str(source), "--out", str(tmp_path / "out"), "--only", "pope"]
    assert benchmarks.main(arguments)["pope"] == 4
    write_table(source / "POPE.tsv", [asks(0)])
    assert benchmarks.main(arguments)["pope"] == 1
