"""Records: every format gives the same records, and every malformed one a sentence with its place."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revision import records
from revision.pictures import Blob
from revision.records import Conversation, Image, Message, Pair, Text

TEXTS = [{"id": "a", "text": "a cat"}, {"id": "b", "text": "ein großer Hund"}]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "authors.json"])
def test_formats_agree(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"texts.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in TEXTS))
    elif suffix == "json":
        file.write_text(json.dumps(TEXTS))
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(TEXTS), file)
    else:
        file.write_text(json.dumps({"images": [{"id": "i", "image": "i.png"}], "texts": TEXTS}))
    assert list(records.read_texts(file)) == [Text("a", "a cat"), Text("b", "ein großer Hund")]
    assert records.count_records(file, "text") == 2


def test_authors_mapping_has_images_and_texts(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"images": [{"id": 7, "image": "i.png"}], "texts": TEXTS}))
    assert list(records.read_images(file)) == [Image("7", tmp_path / "i.png")]
    assert [row["id"] for row in records.read_rows(file)] == [7, "a", "b"]
    file.write_text(json.dumps({"texts": TEXTS}))
    with pytest.raises(ValueError, match=r"dataset\.json is a mapping without 'images'; it has 'texts'"):
        records.count_records(file, "image")


def test_image_paths(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "images.jsonl", [{"id": "a", "image": "x/a.png"}, {"id": "b", "image": "/abs/b.png"}])
    assert [image.picture for image in records.read_images(file)] == [tmp_path / "x/a.png", Path("/abs/b.png")]
    rooted = [image.picture for image in records.read_images(file, Path("/pictures"))]
    assert rooted == [Path("/pictures/x/a.png"), Path("/abs/b.png")]
    assert records.count_records(file, "image") == 2


def test_pairs(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", [{"id": 3, "image": "a.png", "text": "a cat", "extra": 1}])
    assert list(records.read_pairs(file)) == [Pair("3", tmp_path / "a.png", "a cat")]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"image": "a.png", "text": None}, r"line 1: 'text' must be a text, not None"),
        ({"image": None, "text": "x"}, r"line 1: 'image' must be a text, not None"),
        ({"image": "", "text": "x"}, r"line 1: 'image' is '', which is no path of a file"),
        ({"image": {"bytes": None, "path": None}, "text": "x"}, r"'image' must be the path of a file here, not bytes"),
    ],
)
def test_malformed_pairs(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        list(records.read_pairs(write_lines(tmp_path / "p.jsonl", [{"id": "a", **row}])))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_null_is_a_record_without_content(tmp_path: Path, suffix: str) -> None:
    """For `embed` to reject. Fields that have other names in the file, or lie in a mapping, may be null too."""
    rows = [
        {"id": "a", "text": "a cat", "image": "a.png", "of": {"text": "a cat"}},
        {"id": "b", "text": None, "image": None, "of": {"text": None}},
        {"id": "c", "text": "", "image": "", "of": None},
    ]
    file = tmp_path / f"t.{suffix}"
    if suffix == "jsonl":
        write_lines(file, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    expected = [Text("a", "a cat"), Text("b", ""), Text("c", "")]
    for fields in (None, {"text": "of.text"}):
        assert list(records.read_texts(file, fields)) == expected
        assert records.count_records(file, "text", fields) == 3
    for fields in (None, {"image": "image"}):
        found = list(records.read_images(file, None, fields))
        assert [image.id for image in found] == ["a", "b", "c"] and found[0].picture == tmp_path / "a.png"
        assert [image.picture for image in found[1:]] == [
            Blob(f"{file}, {'line' if suffix == 'jsonl' else 'row'} {number}, image", b"") for number in (2, 3)
        ]
        assert records.count_records(file, "image", fields) == 3
    missing = write_lines(tmp_path / "m.jsonl", [rows[0], {"id": "d", "of": {}}])
    for fields in (None, {"text": "of.text"}, {"text": "of.text.x"}, {"text": "none"}):
        with pytest.raises(ValueError, match=r"line [12]: the record has no 'text'"):
            records.count_records(missing, "text", fields)


def test_conversations_of_both_forms(tmp_path: Path) -> None:
    ours = {
        "id": "a",
        "image": "row-1",
        "messages": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}],
    }
    llava = {
        "id": "a",
        "image": "row-1",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
    }
    expected = Conversation("a", "row-1", [Message("user", "<image>\nWhat?"), Message("assistant", "A cat.")])
    file = write_lines(tmp_path / "c.jsonl", [ours, llava])
    assert list(records.read_conversations(file)) == [expected, expected]


def test_turns_of_either_form_in_either_list(tmp_path: Path) -> None:
    ours = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    theirs = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    table = [{"role": None, "content": None, **turn} for turn in theirs]
    rows = [{"id": "a", name: turns} for name in ("messages", "conversations") for turns in (ours, theirs, table)]
    expected = Conversation("a", None, [Message("user", "Hi"), Message("assistant", "Hello")])
    file = write_lines(tmp_path / "c.jsonl", [*rows, {"id": "a", "image": "", "messages": ours}])
    assert list(records.read_conversations(file)) == [expected] * 7
    named = [{"id": "b", "image": "b.png", "messages": []}, {"id": "c", "image": "", "messages": []}]
    file = write_lines(tmp_path / "d.jsonl", named)
    assert [image.id for image in records.read_images(file, fields={"id": "image"})] == ["b.png"], "no picture, no row"


def test_files_of_openai_have_no_ids(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "c.jsonl", [{"messages": [user("Hi"), ANSWER]}] * 2)
    with pytest.raises(
        ValueError, match=r"line 1: the record has no 'id'; it has 'messages': .*, such as {id: \"#\"}$"
    ):
        list(records.read_conversations(file))
    assert [talk.id for talk in records.read_conversations(file, {"id": "#"})] == ["0", "1"]


def test_conversation_without_image(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
             {"role": "assistant", "content": "Hello"}]  # fmt: skip
    (found,) = records.read_conversations(write_lines(tmp_path / "c.jsonl", [{"id": "a", "messages": turns}]))
    assert found.image is None
    assert [message.role for message in found.messages] == ["system", "user", "assistant"]


ANSWER = {"role": "assistant", "content": "yes"}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({}, "it needs a list 'messages'"),
        ({"messages": ["hi"]}, "line 1, turn 1: a turn must be a mapping, not 'hi'"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "'role' is 'bot'; known are user, assistant, system"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "'from' is 'bot'; known are human, user, gpt, chatgpt"),
        ({"conversations": [{"role": "tool"}]}, "'role' is 'tool'; known are user, assistant, system: leave the conv"),
        (
            {"messages": [{"from": "bing"}]},
            "'from' is 'bing'; known are human, .*: leave the conversation out, or write",
        ),
        ({"messages": [{"content": "x"}]}, "turn 1: the record has no 'role'; it has 'content'"),
        ({"messages": [user("x")]}, "no answer to learn from"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "no answer to learn from"),
        ({"messages": [ANSWER], "image": "r"}, "0 <image> mark.s. in the user's turns, but one image"),
        ({"messages": [user("<image>"), ANSWER]}, "1 <image> mark.s. .* but no image"),
        ({"messages": [user("<image><image>"), ANSWER], "image": "r"}, "2 <image> mark"),
        ({"messages": [ANSWER], "image": 3}, "'image' must be a text, not 3"),
    ],
)
def test_malformed_conversations(tmp_path: Path, row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        list(records.read_conversations(write_lines(tmp_path / "c.jsonl", [{"id": "a", **row}])))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"id": "a", "text": "x"}\n{"id": "b"', r"t\.jsonl, line 2 is not valid JSON"),
        ('{"id": "a", "text": "x"}\n\n[1]', r"t\.jsonl, line 3: a record must be a mapping, not list"),
        ('{"id": "a", "caption": "x"}', r"line 1: the record has no 'text'; it has 'id', 'caption'"),
        ('{"text": "x"}', r"line 1: the record has no 'id'"),
        ('{"id": "", "text": "x"}', r"line 1: 'id' must not be empty"),
        ('{"id": true, "text": "x"}', r"line 1: 'id' must be a text, not True"),
        ('{"id": 1.5, "text": "x"}', r"line 1: 'id' must be a text, not 1\.5"),
        ('{"id": "a", "text": 3}', r"line 1: 'text' must be a text, not 3"),
        ('{"id": "a", "text": "\\ud83d"}', r"line 1: 'text' holds half a surrogate pair"),
        ("", r"t\.jsonl holds no text records"),
    ],
)
def test_malformed_lines(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        records.count_records(file, "text")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(b'{"id": "a", "text": "ok"}\n{"id": "b", "text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"line 2 is not valid JSON"):
        list(records.read_texts(file))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.csv", b"id,text", r"t\.csv begins with b'id,text', which is no format of records; known are JSON lines"),
        ("t.json", b"[", "is not valid JSON"),
        ("t.json", b'{"texts": 3}', "must hold a list of records"),
        ("t.json", b'["x"]', "item 1: a record must be a mapping, not str"),
        ("t.parquet", b"nonsense", "is not a readable parquet file"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(records.read_texts(tmp_path / name))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"records file .*gone\.jsonl does not exist"):
        list(records.read_texts(tmp_path / "gone.jsonl"))
    with pytest.raises(ValueError, match=r"does not exist"):
        records.fingerprint(tmp_path / "gone.jsonl")


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    rows = [{"id": str(number), "text": "x"} for number in (1, 2, 3, 2)]
    file = write_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=r"id '2' occurs twice: .*t\.jsonl, line 2, and .*t\.jsonl, line 4"):
        records.count_records(file, "text")


def test_colliding_hashes_are_not_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revision.records.reading.hash_id", lambda identity: len(identity))
    assert records.count_records(write_lines(tmp_path / "t.jsonl", TEXTS), "text") == 2
    file = write_lines(tmp_path / "u.jsonl", [*TEXTS, TEXTS[0]])
    with pytest.raises(ValueError, match=r"id 'a' occurs twice"):
        records.count_records(file, "text")


def test_fingerprint_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(b"some bytes")
    assert records.fingerprint(file) == hashlib.sha256(b"some bytes").hexdigest()
