"""Recipes of published corpora, each on a small sample in its publisher's own format."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_recipes import ANY, CAPTIONS, RECIPES, Rows, asked, caption_rows, rows_of, run_killed, talk_rows

# isort: split
import bunny
import densefusion
import internvl_sft
import llava_instruct
import llava_pretrain
import sharegpt4v
import text
import unicorn
from corpus_parts import sampling
from corpus_parts.duplicates import Duplicates, normal_form, similarity
from corpus_parts.line import start
from corpus_parts.quality import Quality
from corpus_parts.sentences import paragraphs, passages, sentences

from revision.records import count_records, read_conversations, read_images, read_pairs, read_texts


def check_talks(out: Path, root: str = "") -> None:
    found = list(read_conversations(out / "conversations.jsonl"))
    assert [(one.image, len(one.messages)) for one in found] == [
        (f"{root}a/1.jpg", 4), (f"{root}a/1.jpg", 4), (None, 2), (None, 2)
    ]  # fmt: skip
    assert len({one.id for one in found}) == 4
    assert [image.picture for image in read_images(out / "images.jsonl", out / "images")] == [
        out / f"images/{root}a/1.jpg"
    ]
    reasons = [row["reason"] for row in rows_of(out / "rejected.jsonl")]
    assert [("2 <image> mark" in reasons[0]), ("but no image" in reasons[1]), ("no answer" in reasons[2])] == [True] * 3


@pytest.mark.parametrize(
    ("recipe", "file", "options"),
    [
        (bunny, "pretrain/bunny_pretrain_laion_2m.json", []),
        (llava_pretrain, "blip_laion_cc_sbu_558k.json", []),
        (sharegpt4v, "share-captioner_coco_lcs_sam_1246k_1107.json", []),
        (sharegpt4v, "sharegpt4v_instruct_gpt4-vision_cap100k.json", ["--part", "gpt4v"]),
    ],
)
def test_captions_in_llavas_form(tmp_path: Path, recipe: Any, file: str, options: list[str]) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / file).parent.mkdir(parents=True)
    (source / file).write_text(json.dumps(caption_rows()))
    arguments = ["--out", str(out), "--source", str(source), *options, *ANY]
    counts = recipe.main(arguments)
    assert counts == {"texts": 3, "images": 3, "pairs": 3, "conversations": 0, "rejected": 2, "statistics": 3}
    name = recipe.CARD.name
    assert [(one.id, one.text) for one in read_texts(out / "texts.jsonl")] == [
        (f"{name}-{n:07d}", caption) for n, caption in enumerate(CAPTIONS)
    ]
    pairs = list(read_pairs(out / "pairs.jsonl", out / "images"))
    assert [(pair.path, pair.text) for pair in pairs] == [
        (out / f"images/{n}.jpg", one) for n, one in enumerate(CAPTIONS)
    ]
    assert count_records(out / "statistics.jsonl", "image") == 3
    assert [row["reason"] for row in rows_of(out / "rejected.jsonl")] == [
        "its caption is missing or empty", "its picture is ['4.jpg', '5.jpg'], not one path"
    ]  # fmt: skip
    mark = json.loads((out / "recipe.json").read_text())
    assert mark["corpus"]["licence"] and mark["corpus"]["homepage"].startswith("https://") and mark["counts"] == counts
    before = (out / "texts.jsonl").stat().st_mtime_ns
    assert recipe.main(arguments) == counts
    assert (out / "texts.jsonl").stat().st_mtime_ns == before, "a finished corpus is left alone"
    assert recipe.main([*arguments, "--keep", "2"])["texts"] == 2
    kept = [{row["id"] for row in rows_of(out / f"{part}.jsonl")} for part in ("texts", "images", "pairs")]
    assert kept[0] == kept[1] == kept[2] and len(kept[0]) == 2


def test_bunny_filtered(tmp_path: Path) -> None:
    said = [*CAPTIONS, "a CAT, on a red sofa", "Buy", "see https://x.org for more of it", "12 34 56 78"]
    rows = [{"id": n, "image": f"{n}.jpg", "conversations": asked("<image>", one)} for n, one in enumerate(said)]
    (tmp_path / "bunny.json").write_text(json.dumps(rows))
    counts = bunny.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path / "bunny.json"), "--filter"])
    assert counts["texts"] == 3
    reasons = " ".join(row["reason"] for row in rows_of(tmp_path / "out/rejected.jsonl"))
    for part in ("it is a duplicate", "it has 1 words", "an address: 'https://'", "0% of it are letters"):
        assert part in reasons


def test_densefusion(tmp_path: Path) -> None:
    rows = [
        {"image_id": 1, "image_path": "000001/1.jpg", "caption": CAPTIONS[0], "url": "https://x/1"},
        {"image_id": 2, "caption": CAPTIONS[1], "url": "https://x/2"},
        {"image_id": 3, "image_path": "000001/3.jpg", "caption": None},
        {"image_id": 4, "image_path": "../../etc/passwd", "caption": CAPTIONS[2]},
    ]
    (tmp_path / "DenseFusion-1M.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = densefusion.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path), *ANY])
    assert counts["texts"] == counts["images"] == 2 and counts["rejected"] == 2
    assert [row["image"] for row in rows_of(tmp_path / "out/images.jsonl")] == ["000001/1.jpg", "2.png"]
    assert "leads out of the folder" in rows_of(tmp_path / "out/rejected.jsonl")[1]["reason"]


@pytest.mark.parametrize(("recipe", "options"), [(llava_instruct, []), (sharegpt4v, ["--part", "mix"])])
def test_conversations_in_llavas_form(tmp_path: Path, recipe: Any, options: list[str]) -> None:
    file = tmp_path / (recipe.PARTS["mix"] if options else recipe.CARD.files[0])
    file.write_text(json.dumps(talk_rows()))
    recipe.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path), *options, *ANY])
    check_talks(tmp_path / "out")


def test_internvl_roots_and_subset(tmp_path: Path) -> None:
    (tmp_path / "opensource").mkdir()
    for name in internvl_sft.SETS:
        lines = "".join(json.dumps(row) + "\n" for row in talk_rows())
        (tmp_path / "opensource" / name).write_text(lines)
    assert sum(rows for rows, _ in internvl_sft.SETS.values()) == 1_267_819
    out = tmp_path / "one"
    internvl_sft.main(["--out", str(out), "--source", str(tmp_path), "--sets", "dvqa_train_200k.jsonl", *ANY])
    check_talks(out, "dvqa/")
    out = tmp_path / "all"
    counts = internvl_sft.main(["--out", str(out), "--source", str(tmp_path), "--keep", "7", *ANY])
    kept = rows_of(out / "conversations.jsonl")
    named = {row["image"] for row in kept if "image" in row}
    assert counts["conversations"] == len(kept) == 7 and 0 < counts["images"] == len(named) < 8, "8 are those of all"
    assert {row["id"] for row in rows_of(out / "images.jsonl")} == named, "no picture is embedded for nothing"
    assert counts["rejected"] == 27
    first = (out / "conversations.jsonl").read_text()
    again = tmp_path / "again"
    internvl_sft.main(["--out", str(again), "--source", str(tmp_path), "--keep", "7", *ANY])
    assert (again / "conversations.jsonl").read_text() == first, "a function of the seed"
    internvl_sft.main(["--out", str(again), "--source", str(tmp_path), "--keep", "7", "--seed", "1", *ANY])
    assert (again / "conversations.jsonl").read_text() != first


def test_a_single_file_is_the_set_of_its_name(tmp_path: Path) -> None:
    """Sets differ in the folder that their paths start from, so one file must not stand for another."""
    file = tmp_path / "chartqa_train_18k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in talk_rows()))
    arguments = [*ANY, "--out", str(tmp_path / "out"), "--source"]
    internvl_sft.main([*arguments, str(file)])
    check_talks(tmp_path / "out", "chartqa/")
    with pytest.raises(ValueError, match=r"chartqa_train_18k.jsonl is one file, and not .* wanted, dvqa_train_200k"):
        internvl_sft.main([*arguments, str(file), "--sets", "dvqa_train_200k.jsonl"])
    other = file.rename(tmp_path / "mine.jsonl")
    with pytest.raises(ValueError, match=r"mine.jsonl is one file, and not .*synthdog_en.jsonl; give their folder"):
        internvl_sft.main([*arguments, str(other)])
    internvl_sft.main([*arguments, str(other), "--sets", "dvqa_train_200k.jsonl"])
    check_talks(tmp_path / "out", "dvqa/")


@pytest.mark.parametrize(
    ("recipe", "options", "there"),
    [
        (internvl_sft, ["--sets", "geoqa+.jsonl"], "geoqa+.jsonl"),
        (internvl_sft, ["--sets", "geoqa+.jsonl"], "opensource/geoqa+.jsonl"),
        (densefusion, ["--part", "4v-100k"], "DenseFusion-4V-100k/DenseFusion-4V-100K.jsonl"),
        (densefusion, ["--part", "4v-100k"], "DenseFusion-4V-100k/DenseFusion-4V-100k.jsonl"),
        (densefusion, ["--part", "4v-100k"], "DenseFusion-4V-100k.jsonl"),
        (densefusion, ["--part", "4v-100k"], "DenseFusion-4V-100K.jsonl"),
        (densefusion, [], "DenseFusion-1M.jsonl"),
        (densefusion, [], "DenseFusion-1M/DenseFusion-1M.jsonl"),
    ],
)
def test_files_that_were_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Any, options: list[str], there: str
) -> None:
    """On the hub and in a copy of it, under each of the paths that they have had."""
    file = tmp_path / "hub" / there
    file.parent.mkdir(parents=True)
    rows = talk_rows() if recipe is internvl_sft else [{"image_id": 1, "caption": CAPTIONS[0]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def download(repo: str, name: str, *, repo_type: str) -> str:
        if name != there:
            raise LocalEntryNotFoundError(f"{repo} has no {name}")
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    fetched = recipe.main(["--out", str(tmp_path / "fetched"), *options, *ANY])
    copied = recipe.main(["--out", str(tmp_path / "copied"), "--source", str(tmp_path / "hub"), *options, *ANY])
    assert fetched == copied and fetched["images"] == 1


def test_unicorn(tmp_path: Path) -> None:
    pretrain: Rows = [{"id": f"p{n}", "conversations": asked("<image>", one)} for n, one in enumerate(CAPTIONS)]
    pretrain += [{"id": "p0", "conversations": asked("<image>", "Again.")}, {"id": None, "caption": "No id."}]
    instruct = [
        {"id": "p1", "conversations": asked("<image>\nWhat?", "Dogs.")},
        {"id": "q", "caption": "A tall tree.", "conversations": asked("<image>\nWhat?", "A tree.")},
        {"id": "r", "conversations": asked("<image>\nWhat?", "Nobody knows.")},
    ]
    (tmp_path / "p.json").write_text(json.dumps(pretrain))
    (tmp_path / "i.json").write_text(json.dumps(instruct))
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--pretrain", str(tmp_path / "p.json"), "--instruct", str(tmp_path / "i.json")]
    arguments += ANY
    assert unicorn.main(arguments) == {
        "texts": 4, "images": 0, "pairs": 0, "conversations": 2, "rejected": 3, "statistics": 0
    }  # fmt: skip
    texts = {one.id: one.text for one in read_texts(out / "texts.jsonl")}
    talks = list(read_conversations(out / "conversations.jsonl"))
    assert [texts[str(talk.image)] for talk in talks] == [CAPTIONS[1], "A tall tree."]
    (out / "images").mkdir()
    (out / "images/x.PNG").write_bytes(b"")
    assert unicorn.main([*arguments, "--statistics", "5"])["statistics"] == 1
    for seed in range(4):
        unicorn.main([*arguments, "--keep", "1", "--seed", str(seed)])
        texts = {one.id: one.text for one in read_texts(out / "texts.jsonl")}
        (talk,) = read_conversations(out / "conversations.jsonl")
        assert talk.image in texts and len(texts) <= 2, "one that is drawn, and the one that is talked about"
    with pytest.raises(ValueError, match="give --pretrain FILE, --instruct FILE or both"):
        unicorn.main(["--out", str(out)])


PROSE = """Dr. Smith came at 5 p.m. on Monday. He saw J. R. Brown there! "Was it late?" he asked.

A second paragraph follows it here. It has three sentences of some length. This is the last one of them all.
"""


def test_sentences_and_passages() -> None:
    first, second = paragraphs(PROSE)
    assert list(sentences(first)) == [
        "Dr. Smith came at 5 p.m. on Monday.", "He saw J. R. Brown there!", '"Was it late?" he asked.'
    ]  # fmt: skip
    assert [len(one.split()) for one in passages(second, 13)] == [13, 8]
    assert " ".join(passages(second, 13)) == second


def test_near_duplicates_against_jaccard() -> None:
    """The estimate is near the true similarity of 3-word shingles, and the rule goes by it."""
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(400)]
    base = [str(word) for word in rng.choice(words, 60)]

    def shingles(text: str) -> set[tuple[str, ...]]:
        parts = text.split()
        return {tuple(parts[n : n + 3]) for n in range(len(parts) - 2)}

    met = Duplicates(near=0.8)
    errors = []
    for changed in (0, 1, 3, 8, 20):
        other = [*base]
        for place in rng.choice(60, changed, replace=False):
            other[place] = "new"
        one, two = " ".join(base), " ".join(other)
        true = len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))
        errors.append(abs(similarity(met.signature(one), met.signature(two)) - true))
    assert max(errors) < 0.15  # two and a half standard deviations of 64 draws
    assert met.fault(" ".join(base)) is None
    assert met.fault(" ".join(base).upper() + " !") == "it is a duplicate"
    assert met.fault(" ".join([*base[:-1], "new"])) == "it is a near duplicate"
    assert met.fault(" ".join(rng.permutation(base))) is None
    assert Duplicates(near=None).fault("x") is None
    assert normal_form("A  Cat, (red)") == "a cat red"


def test_quality() -> None:
    quality = Quality(min_words=2, max_words=20)
    assert quality.fault("Eine große Katze. 一只猫") is None
    for said, fault in [
        ("one", "1 words"), ("w " * 21, "21 words"), ("a b\ufffd", "replacement"), ("<b>bold</b> text", "markup"),
        ("1 2 3 four", "are letters"), ("spam " * 8 + "egg ham", "one word is 80%"),
    ]:  # fmt: skip
        assert fault in str(quality.fault(said))


@pytest.mark.parametrize("level", ["sentence", "passage", "document"])
def test_text_folder(tmp_path: Path, level: str) -> None:
    source, out = tmp_path / "texts", tmp_path / "out"
    source.mkdir()
    (source / "a.txt").write_text(PROSE)
    (source / "b.md").write_text("Another file says something else, at some length, here.\n\n" + PROSE)
    (source / "c.txt").write_bytes(b"\xff\xfe\x00")
    (source / "d.txt").write_text("")
    arguments = ["--out", str(out), "--source", str(source), "--level", level, "--near", "0", *ANY]
    counts = text.main(arguments)
    said = [one.text for one in read_texts(out / "texts.jsonl")]
    reasons = Counter(row["reason"].split(":")[0] for row in rows_of(out / "rejected.jsonl"))
    assert len(set(said)) == len(said) == counts["texts"] == {"sentence": 7, "passage": 3, "document": 2}[level]
    assert any("c.txt is not UTF-8" in reason for reason in reasons)
    assert reasons["it is a duplicate"] == {"sentence": 6, "passage": 2, "document": 0}[level]


def test_text_records(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"body": one}) + "\n" for one in [*CAPTIONS, None]))
    arguments = ["--out", str(tmp_path / "out"), "--source", str(tmp_path / "t.jsonl"), "--level", "document", *ANY]
    assert text.main([*arguments, "--column", "body"])["texts"] == 3
    with pytest.raises(ValueError, match="no row of .*t.jsonl became a record; the first: its text is NoneType"):
        text.main([*arguments, "--column", "nobody"])


def snapshot(folder: Path) -> Path:
    """A data set as the hub lays it out, without a picture: a card, a licence, and splits in a folder below."""
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n# A card\n\nIt says a thing or two about the data set.\n"
    )
    (folder / "LICENSE").write_text("MIT")
    (folder / "dataset_infos.json").write_text("{}")
    for place, split in enumerate(("test", "train")):
        table = pa.table({"text": [f"{caption} It is number {place}." for caption in CAPTIONS]})
        pq.write_table(table, folder / f"data/{split}-00000-of-00001.parquet")
    return folder


def test_a_snapshot_of_the_hub_is_its_rows(tmp_path: Path) -> None:
    source = snapshot(tmp_path / "hub")
    arguments = ["--out", str(tmp_path / "out"), "--source", str(source), "--level", "document", "--near", "0"]
    assert text.main(arguments)["texts"] == 6
    said = [one.text for one in read_texts(tmp_path / "out/texts.jsonl")]
    assert said == [f"{caption} It is number {place}." for place in range(2) for caption in CAPTIONS]
    before = json.loads((tmp_path / "out/recipe.json").read_text())["sources"]
    pq.write_table(pa.table({"text": ["One text that is there now."]}), source / "data/train-00000-of-00001.parquet")
    assert text.main(arguments)["texts"] == 4, "a changed file is noticed"
    assert json.loads((tmp_path / "out/recipe.json").read_text())["sources"] != before


def test_a_folder_of_texts_and_of_records_is_refused(tmp_path: Path) -> None:
    source = snapshot(tmp_path / "hub")
    (source / "data/extra.txt").write_text(PROSE)
    with pytest.raises(
        ValueError,
        match=r"holds text files, such as data/extra.txt, and .*, such as data/test-0.*; name the records alone",
    ):
        text.main(["--out", str(tmp_path / "out"), "--source", str(source)])
    csv = tmp_path / "csv"
    csv.mkdir()
    (csv / "README.md").write_text(PROSE)
    (csv / "train.csv").write_text("text\nA text.\n")
    with pytest.raises(ValueError, match=r"is a folder without \.tar, \.parquet"):
        text.main(["--out", str(tmp_path / "out"), "--source", str(csv)])


def test_records_of_several_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.NDJSON").write_text('{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"holds records of several kinds \(a\.jsonl, b\.NDJSON\); name one of them"):
        text.contents(str(tmp_path))


def test_a_choice_of_captions_leaves_out_those_without_a_picture(tmp_path: Path) -> None:
    def write(name: str, ids: list[str]) -> None:
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"id": one}) + "\n" for one in ids))

    for name, ids in (("texts", list("abcd")), ("images", list("acd")), ("pairs", list("acd"))):
        write(name, ids)
    counts = sampling.draw(tmp_path, 3, 0)
    kept = {name: [json.loads(row)["id"] for row in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            for name in counts}  # fmt: skip
    assert len(kept["texts"]) == 3 and kept["images"] == kept["pairs"] == [one for one in kept["texts"] if one != "b"]


def test_a_killed_recipe_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every place where it can be, it ends with the same bytes, and meets the same duplicates."""
    rows = [{"body": f"{CAPTIONS[n % 3]} It is number {n // 6}."} for n in range(30)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(out: str) -> list[str]:
        return ["--out", str(tmp_path / out), "--source", str(tmp_path / "t.jsonl"), "--column", "body"]

    whole, counts = text.main(arguments("whole")), dict[str, int]()
    starts = []

    def make() -> None:
        try:
            counts.update(text.main(arguments("killed")))
        except KeyboardInterrupt:
            starts.append(json.loads((tmp_path / "killed/progress.json").read_text())["done"])
            raise

    assert run_killed(make, monkeypatch, every=7) < 10
    assert starts == sorted(set(starts)) and len(starts) > 3, "each start goes on after the last note"
    assert counts == whole and whole["rejected"] > 5
    for file in ("texts.jsonl", "rejected.jsonl"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not list((tmp_path / "killed").glob("*.partial"))


def test_missing_pictures_are_rejected_where_asked(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(caption_rows()[:2]))
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images/1.jpg").write_bytes(b"")
    counts = llava_pretrain.main(["--out", str(out), "--source", str(tmp_path / "s.json"), "--check-images", *ANY])
    assert counts["texts"] == counts["rejected"] == 1
    assert rows_of(out / "rejected.jsonl")[0]["reason"] == "picture images/0.jpg does not exist"


def test_a_picture_whose_name_no_file_can_have_is_rejected(tmp_path: Path) -> None:
    rows = caption_rows()[:2]
    rows[0]["image"] = "x" * 300 + ".jpg"
    (tmp_path / "s.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images/1.jpg").write_bytes(b"")
    counts = llava_pretrain.main(["--out", str(out), "--source", str(tmp_path / "s.json"), "--check-images", *ANY])
    assert counts["texts"] == counts["rejected"] == 1
    assert "is longer than that of a file can be" in rows_of(out / "rejected.jsonl")[0]["reason"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "x: No space left on device; mend that and give the same"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "x: a.json: Permission denied; mend that"),
        (ValueError("a sentence"), "x: a sentence"),
    ],
)
def test_what_the_disk_refuses_is_a_sentence(error: Exception, said: str) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        start(main, "x")
    assert str(ended.value.code).startswith(said)


@pytest.mark.parametrize("error", [TypeError("ours"), OSError("of a library")])
def test_a_mistake_of_ours_keeps_its_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        start(main, "x")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no blip_laion_cc_sbu_558k\.json; get it from https://"):
        llava_pretrain.main(["--out", str(tmp_path / "out"), "--source", str(tmp_path)])
    with pytest.raises(ValueError, match=r"of liuhaotian/LLaVA-Pretrain cannot be fetched .*give --source"):
        llava_pretrain.main(["--out", str(tmp_path / "out")])


@pytest.mark.parametrize("file", sorted((RECIPES.parent / "configs/data").glob("*.yaml")), ids=lambda file: file.stem)
def test_recipes_of_configurations_know_their_options(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `revision run` starts is a recipe that takes these words; one more that it refuses ends it there."""
    content = yaml.safe_load(file.read_text())
    if content.get("recipe") is None or "nano" in content["recipe"]:
        return
    own = [content["recipe"], "--out", content["folder"], *content.get("recipe_options", [])]
    if own[0].endswith("/text.py"):
        own += ["--source", "x"]  # the user's part of the line, without which nothing else of it is looked at
    for name, *words in [*map(shlex.split, content.get("needs", [])), own]:
        assert (RECIPES.parent / name).is_file()
        recipe: Any = importlib.import_module(Path(name).stem)
        with pytest.raises(SystemExit) as ended:
            recipe.main([*words, "--no-such-option"])
        assert ended.value.code == 2
        assert capsys.readouterr().err.endswith(": error: unrecognized arguments: --no-such-option\n"), "and no other"


def test_a_recipe_is_a_program(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(caption_rows()))
    words = [sys.executable, str(RECIPES / "llava_pretrain.py"), *ANY, "--out", str(tmp_path / "out"), "--source"]
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parent)}
    subprocess.run([*words, str(tmp_path / "s.json")], check=True, capture_output=True, env=environment)
    assert len(rows_of(tmp_path / "out/texts.jsonl")) == 3
    done = subprocess.run([*words, str(tmp_path / "no.json")], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "llava-pretrain: --source" in done.stderr and "Traceback" not in done.stderr
