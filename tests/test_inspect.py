"""`revision inspect`: its numbers against independent counting, its samples, and what it says of a bad corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_corpus import make_corpus, make_groups
from transformers import AutoTokenizer

from revision.cli import main
from revision.data.inspection import Sampled, images_summary, sample_of
from revision.pictures import Blob
from revision.records import Image, Text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inspect")
    made = make_corpus(folder / "corpus", tiny_llm)
    return made, make_groups(folder / "groups", made)


def inspect(corpus: tuple[Path, Path], runs: Path, *more: str) -> int:
    options = ["data=tiny", "encoder=tiny", "model.llm=${data.folder}/assets/llm", "model.num_visual_tokens=3"]
    return main(["inspect", *options, f"runs={runs}", "--config-dir", str(corpus[1]), *more])


def report_of(runs: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((runs / "default/inspect/inspect.json").read_text())
    return report


def test_packed_rows_are_counted_as_they_train(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    packed = ["pretrain.packing=packed", "pretrain.max_length=200", "pretrain.pack_tokens=400"]
    trainer = ["max_steps=5", "per_device_train_batch_size=2", "gradient_accumulation_steps=3"]
    words = [*packed, *(f"pretrain.trainer.{one}" for one in trainer)]
    assert inspect(corpus, tmp_path, *words, "pretrain.trainer.train_sampling_strategy=random") == 0
    found = report_of(tmp_path)["stages"]["pretrain"]
    assert found["samples_trained"] == round(5 * 3 * 400 / found["mean"]), "a micro-batch is one row"


def test_null_takes_a_setting_of_the_trainer_out(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["trainer.max_steps=7", "pretrain.trainer.max_steps=null", "pretrain.trainer.num_train_epochs=null"]
    assert inspect(corpus, tmp_path, *words) == 0
    found = report_of(tmp_path)["stages"]["pretrain"]
    assert found["samples_trained"] == 3 * found["records"], "transformers' own number of epochs"


def test_numbers(corpus: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first_stage = ["num_train_epochs=2", "max_steps=-1"]
    second_stage = ["max_steps=5", "per_device_train_batch_size=2", "gradient_accumulation_steps=3"]
    trainer = [f"pretrain.trainer.{one}" for one in first_stage] + [f"instruct.trainer.{one}" for one in second_stage]
    assert inspect(corpus, tmp_path, *trainer) == 0
    report = report_of(tmp_path)
    first, second = report["stages"]["pretrain"], report["stages"]["instruct"]
    texts = [json.loads(line)["text"] for line in (corpus[0] / "texts.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(corpus[0] / "assets/llm")
    learned = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts]
    assert first["records"] == first["tokenized"] == len(texts) and first["exact"]
    assert first["learned_an_epoch"] == sum(learned), "the text and the token that ends the turn"
    assert first["tokens_an_epoch"] > sum(learned) + 3 * len(texts), "three visual tokens each, and the template"
    assert first["samples_trained"] == 2 * len(texts) and first["tokens_trained"] == 2 * first["tokens_an_epoch"]
    assert sum(count for _, _, count in first["histogram"]) == len(texts)
    assert second["records"] == 12 and second["samples_trained"] == 30
    assert second["with_picture"] == 12 and second["picture_unknown"] == 0
    assert second["duplicates"] == 0, "the same words about other pictures"
    assert report["images"]["statistics"] == {"records": 6, "repeated_ids": 0, "missing": 0, "first_missing": []}
    assert report["tokens_trained"] == first["tokens_trained"] + second["tokens_trained"]
    out = capsys.readouterr().out
    assert "<image>×3" in out and "instruct: c0" in out and texts[0] in out
    assert not (tmp_path / "default/inspect/finished.json").exists()


def test_what_is_wrong_is_named(corpus: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "a cat"}]
    rows = [{"id": "x", "image": "0", "messages": turns}, {"id": "y", "image": "nobody", "messages": turns},
            {"id": "z", "image": "0", "messages": turns},
            {"id": "w", "messages": [*turns[1:], {"role": "assistant", "content": "see <image>"}]}]  # fmt: skip
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.jsonl").write_text('{"key": 1, "said": "A  cat"}\n{"key": 2, "said": "a CAT"}\n')
    more = [f"data.conversations={tmp_path}/c.jsonl", f"data.sources.texts.records={tmp_path}/t.jsonl",
            "data.sources.texts.fields={id: key, text: said}", f"data.sources.pictures.image_root={tmp_path}",
            "pretrain.max_length=5", "inspect.show=1"]  # fmt: skip
    assert inspect(corpus, tmp_path, *more) == 0
    report = report_of(tmp_path)
    first, second = report["stages"]["pretrain"], report["stages"]["instruct"]
    assert first["duplicates"] == 1 and first["above_max_length"] == 2
    assert second["duplicates"] == 1 and second["picture_unknown"] == 1 and second["refused"] == 1
    assert second["first_unknown"] == ["y: nobody"] and second["first_refused"][0]["id"] == "w"
    assert report["images"]["pictures"]["missing"] == 6 and report["images"]["statistics"]["missing"] == 0
    out = capsys.readouterr().out
    assert "no source has the picture of y: nobody" in out and "6 missing" in out and "pretrain: 1" in out
    assert "instruct: x" not in out, "one sample is shown"


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    (tmp_path / "a.png").touch()
    null, inside = Image("null", Blob("t.jsonl, line 3, image", b"")), Image("in", Blob("s.tar, x.png", b"x"))
    found, _ = images_summary([Image("a", tmp_path / "a.png"), Image("long", long), null, inside], look=True)
    assert found["missing"] == 2 and found["first_missing"] == [f"long: {long}", "null: t.jsonl, line 3, image"]


def test_a_sample_stands_for_all(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    lines = "".join(json.dumps({"id": n, "text": "a red cat " * (1 + n % 7)}) + "\n" for n in range(400))
    (tmp_path / "t.jsonl").write_text(lines)
    source = f"data.sources.texts.records={tmp_path}/t.jsonl"
    assert inspect(corpus, tmp_path, source, "inspect.sample=null") == 0
    whole = report_of(tmp_path)["stages"]["pretrain"]
    assert inspect(corpus, tmp_path, source, "inspect.sample=100") == 0
    part = report_of(tmp_path)["stages"]["pretrain"]
    assert whole["exact"] and not part["exact"] and part["tokenized"] == 100 and part["records"] == 400
    assert abs(part["tokens_an_epoch"] / whole["tokens_an_epoch"] - 1) < 0.15
    assert part["duplicates"] == whole["duplicates"] == 393


def test_the_sample_is_uniform_and_seeded() -> None:
    texts = [Text(str(number), f"text {number}") for number in range(20)]

    def drawn(seed: int) -> Sampled[Text]:
        return sample_of(texts, 5, seed, lambda text: text.text)

    counts = np.zeros(20)
    for seed in range(400):
        sample = drawn(seed)
        assert sample.count == 20 and len(sample.kept) == 5 and [one for one, _ in sample.kept] == sorted(
            one for one, _ in sample.kept
        )  # fmt: skip
        counts[[one for one, _ in sample.kept]] += 1
    assert counts.min() > 65 and counts.max() < 135, "100 on average, with a standard deviation of 9"
    assert drawn(3) == drawn(3)
    assert sample_of(texts[:0], 5, 0, lambda text: text.text).count == 0


def test_pairs_are_what_stage_1_learns_where_it_does(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "pairs.jsonl"
    rows = [{"id": one, "image": "x.png", "text": f"a {one}"} for one in ("0", "1", "nobody", "nobody")]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert inspect(corpus, tmp_path, "pretrain.input=pairs", f"data.pairs={other}") == 0
    first = report_of(tmp_path)["stages"]["pretrain"]
    assert (first["records"], first["duplicates"], first["repeated_ids"]) == (4, 1, 1)
    assert (first["with_picture"], first["picture_unknown"]) == (4, 2)
    assert first["first_unknown"] == ["nobody: nobody", "nobody: nobody"]
    assert first["embeddings"] == {"text": [], "image": ["statistics", "pictures"]}


def test_texts_of_one_id_are_counted(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "texts.jsonl"
    other.write_text("".join(json.dumps({"id": "a", "text": f"a cat {n}"}) + "\n" for n in range(3)))
    assert inspect(corpus, tmp_path, f"data.sources.texts.records={other}") == 0
    first = report_of(tmp_path)["stages"]["pretrain"]
    assert (first["records"], first["duplicates"], first["repeated_ids"]) == (3, 0, 2)


def test_nothing_to_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "data=nano_styles", f"runs={tmp_path}"]) == 1
    assert "has neither data.sources nor data.conversations" in capsys.readouterr().err


def test_texts_in_the_place_of_pictures_are_counted_apart(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    """Four of the twelve ids are found among captions first, though the pictures have them too."""
    lines = "".join(json.dumps({"id": name, "text": "a cat"}) + "\n" for name in ("0", "5", "7", "11", "none"))
    (tmp_path / "captions.jsonl").write_text(lines)
    captions = f"data.sources={{captions: {{kind: text, records: {tmp_path}/captions.jsonl}}}}"
    assert inspect(corpus, tmp_path, captions, "data.conversation_sources=[captions,statistics,pictures]") == 0
    second = report_of(tmp_path)["stages"]["instruct"]
    assert (second["with_text"], second["with_picture"], second["picture_unknown"]) == (4, 8, 0)
    assert second["embeddings"] == {"text": ["captions"], "image": ["statistics", "pictures"]}
    assert inspect(corpus, tmp_path, captions, "data.conversation_sources=[statistics,captions]") == 0
    second = report_of(tmp_path)["stages"]["instruct"]
    assert (second["with_text"], second["with_picture"], second["picture_unknown"]) == (2, 10, 4)
