"""Running text of any script and of any length: sentences, passages, words, quality."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from tiny_recipes import Rows, rows_of, run_killed

# isort: split
import text
from corpus_parts.duplicates import Duplicates
from corpus_parts.quality import Quality
from corpus_parts.sentences import paragraphs, passages, pieces, sentences
from corpus_parts.words import words_of

SENTENCES = {
    "Russian": ["Кошка спит на диване.", "«Где она?»", "Собака бежит по пляжу."],
    "French": ["Le chat dort ici.", "Élan et grâce vont ensemble.", "À bientôt !"],
    "German": ["Er sah den Zug.", "Über ihm stand die Uhr.", "„Wann kam er?“", "Ärger kam auf."],
    "Greek": ["Η γάτα κοιμάται.", "Ο σκύλος τρέχει στην παραλία."],
    "Arabic": ["القطة نائمة على الأريكة.", "أين الكلب؟", "الكلب يجري."],
    "Hindi": ["बिल्ली सोफे पर सो रही है।", "कुत्ता समुद्र तट पर दौड़ता है।"],
    "Korean": ["고양이가 소파에서 잔다.", "개가 해변을 달린다."],
    "Thai": ["แมวนอนอยู่บนโซฟา", "สุนัขวิ่งบนชายหาด"],
}
CHINESE = ["一只猫在红色的沙发上睡觉。", "“两只狗在海滩上跑！”", "车站的墙上有一个旧钟。"]


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_of_scripts_with_blanks(language: str) -> None:
    said = SENTENCES[language]
    assert list(sentences(" ".join(said))) == said
    assert list(passages(" ".join(said), 1000)) == [" ".join(said)]
    quality = Quality(min_words=1)
    assert [quality.fault(one) for one in said] == [None] * len(said)


def test_a_stop_before_a_small_letter_is_none() -> None:
    for said in ("Он пришёл в 5 ч. утра.", "Das ist z.B. éin Wort.", "Approx. 5 cats ... and dogs."):
        assert list(sentences(said)) == [said]


def test_chinese_has_letters_for_words() -> None:
    assert list(sentences("".join(CHINESE))) == CHINESE
    assert len(words_of(CHINESE[0])) == 12 and words_of("iPhone 15手机， 好") == ["iPhone", "15", "手", "机", "好"]
    assert len(words_of("ที่")) == 1, "marks are none"
    assert words_of("A cat - on it. Ünd 1") == ["A", "cat", "-", "on", "it.", "Ünd", "1"]
    quality = Quality(min_words=5, max_words=15)
    assert quality.fault(CHINESE[0]) is None
    assert quality.fault("猫。") == "it has 1 words, outside 5 to 15"
    assert quality.fault("".join(CHINESE)) == "it has 30 words, outside 5 to 15"
    assert list(passages("".join(CHINESE), 23)) == ["".join(CHINESE[:2]), CHINESE[2]], "no blank comes between them"
    assert quality.fault("好" * 12) == "one word is 100% of it, more than 30%"


def test_near_duplicates_without_blanks() -> None:
    met = Duplicates(near=0.6)
    said = "这是一个关于北京城市历史和文化发展的很长的中文句子"
    assert met.fault(said) is None and met.fault(f"{said}吗") == "it is a near duplicate"
    assert met.fault(CHINESE[0]) is None


@pytest.mark.parametrize("level", ["sentence", "passage"])
def test_a_corpus_in_chinese(tmp_path: Path, level: str) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "".join(CHINESE)}, ensure_ascii=False))
    arguments = ["--out", str(tmp_path / "out"), "--source", str(tmp_path / "t.jsonl"), "--level", level]
    text.main(arguments)
    said = [row["text"] for row in rows_of(tmp_path / "out/texts.jsonl")]
    assert said == {"sentence": CHINESE, "passage": ["".join(CHINESE)]}[level]


PROSE = """Dr. Smith came at 5 p.m. on Monday. He saw J. R. Brown there!  "Was it late?" he asked. (Nobody
knew.) It was... late. \tÜber allem 一只猫在红色的沙发上睡觉。“两只狗！”他说。 So it\t ended.

A second  paragraph.\r
 \t
\r\n\n Third one, e.g. this. No. 5 follows? Yes
"""


@pytest.mark.parametrize("level", ["sentence", "passage", "document"])
def test_pieces_of_a_text_in_blocks_are_those_of_the_whole(level: str) -> None:
    said = PROSE.replace("\r\n", "\n").replace("\r", "\n")
    whole = list(pieces([said], level, 12))
    assert len(whole) > {"sentence": 12, "passage": 4, "document": 0}[level]
    assert (
        whole
        == {
            "sentence": [one for part in paragraphs(said) for one in sentences(part)],
            "passage": [one for part in paragraphs(said) for one in passages(part, 12)],
            "document": [" ".join(said.split())],
        }[level]
    )
    for size in range(1, 40):
        blocks = [said[place : place + size] for place in range(0, len(said), size)]
        assert list(pieces(blocks, level, 12)) == whole, size


def many(count: int) -> str:
    return "".join(f"The {n}th sentence of a long file is number {n * n} of them. " for n in range(count))


def made(out: Path, source: Path, *words: str) -> tuple[bytes, bytes]:
    text.main(["--out", str(out), "--source", str(source), "--level", "sentence", *words])
    return (out / "texts.jsonl").read_bytes(), (out / "rejected.jsonl").read_bytes()


def test_a_long_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bytes that it gives as a whole, also where it is killed within a file."""
    source = tmp_path / "texts"
    source.mkdir()
    (source / "a.txt").write_text(many(40) + many(5) + "Short. " + many(50)[-3000:], newline="")
    (source / "b.txt").write_text(PROSE, newline="")
    (source / "c.txt").write_text("")
    (source / "d.txt").write_text(f"{many(40)}A last one stands at the very end.")
    whole = made(tmp_path / "whole", source)
    assert whole[0].count(b"\n") > 40 and b"text-0000003-0040" in whole[0]
    monkeypatch.setattr(text, "BLOCK", 50)
    monkeypatch.setattr(text, "BATCH", 4)
    assert made(tmp_path / "blocks", source) == whole
    assert run_killed(lambda: made(tmp_path / "killed", source), monkeypatch, every=6) > 3
    assert made(tmp_path / "killed", source) == whole


def test_a_long_file_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One paragraph of 11 MiB: what is held at once is a block, in several forms, and the texts of a batch."""
    file = tmp_path / "a.txt"
    with file.open("w") as opened:
        for _ in range(200):
            opened.write(many(1000))
    assert file.stat().st_size > 10 << 20
    monkeypatch.setattr(text, "BLOCK", 1 << 16)
    tracemalloc.start()
    rows = sum(len(row["pieces"]) for row in text.documents(str(file), "text", "sentence", 100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == 200_000 and peak < 4 << 20


def test_single_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(many(5))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(many(5).encode()))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "c.md.gz").write_bytes(gzip.compress(many(5).encode("utf-8-sig")))
    found = {made(tmp_path / "out", source) for source in (tmp_path / "a.txt", tmp_path / "b.txt.gz", folder)}
    assert len(found) == 1 and found.pop()[0].count(b"\n") == 5
    (tmp_path / "lines.txt").write_text(json.dumps({"text": many(3)}))
    assert made(tmp_path / "out", tmp_path / "lines.txt")[0].count(b"\n") == 3, "formats are told by content"


def test_text_files_that_are_none(tmp_path: Path) -> None:
    """Each is rejected as a whole, with the place where it ends to be one."""
    source = tmp_path / "texts"
    source.mkdir()
    (source / "a.txt").write_bytes(many(5).encode())
    (source / "b.txt").write_bytes(b"x" * (1 << 20) + b"\xc3\xa9\xff")
    (source / "c.txt").write_bytes(many(5).encode() + b"\xe2\x82")
    (source / "d.txt.gz").write_bytes(gzip.compress(many(500).encode())[:-20])
    (source / "e.txt.gz").write_bytes(b"\x1f\x8bno gzip at all")
    size = len(many(5))
    texts, _ = made(tmp_path / "out", source, "--reject-budget", "1")
    assert texts.count(b"\n") == 5
    reasons = [row["reason"].removeprefix(f"{source}/") for row in rows_of(tmp_path / "out/rejected.jsonl")]
    assert reasons[:2] == [
        f"b.txt is not UTF-8: invalid start byte at byte {(1 << 20) + 2}",
        f"c.txt is not UTF-8: unexpected end of data at byte {size}",
    ]
    assert [one.split(":")[0] for one in reasons[2:]] == [f"{n}.txt.gz is a damaged gzip file" for n in "de"]


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    source = tmp_path / ".texts"  # the folder that is named may be hidden itself
    (source / ".cache").mkdir(parents=True)
    (source / "a.txt").write_text(many(2))
    before = made(tmp_path / "out", source)
    for name in (".b.txt", ".cache/c.txt", ".cache/d.jsonl"):
        (source / name).write_text(many(9))
    assert made(tmp_path / "out", source) == before


def test_a_dotted_column_leads_into_a_mapping(tmp_path: Path) -> None:
    rows: Rows = [
        {"meta": {"body": {"text": many(1)}}, "text": "Another text that is not meant."},
        {"meta.body.text": "A field of the whole name is the one that is meant."},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, _ = made(tmp_path / "out", tmp_path / "t.jsonl", "--column", "meta.body.text")
    assert [json.loads(line)["text"] for line in texts.splitlines()] == [many(1).strip(), rows[1]["meta.body.text"]]
    with pytest.raises(ValueError, match="its text is NoneType, not a text; see --column"):
        made(tmp_path / "out", tmp_path / "t.jsonl", "--column", "meta.body.text.more")
