"""Running text of any script and of any length: sentences, passages, words, quality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_recipes import rows_of

# isort: split
import text
from corpus_parts.duplicates import Duplicates
from corpus_parts.quality import Quality
from corpus_parts.sentences import passages, sentences
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
