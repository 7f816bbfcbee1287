"""Mixtures of corpora: which rows they take, that their pictures are found, and what they refuse."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tiny_recipes import asked, rows_of

# isort: split
import llava_instruct
import mixture
from corpus_parts import keeping

from revision.records import read_conversations, read_images, read_texts


def make_parts(root: Path) -> None:
    for name, count in (("big", 60), ("small", 12)):
        rows = [{"id": n, "image": f"{n}.jpg", "conversations": asked("<image>", f"{name} {n}")} for n in range(count)]
        (root / f"{name}.json").write_text(json.dumps(rows))
        llava_instruct.main(["--out", str(root / name), "--source", str(root / f"{name}.json")])
        texts = "".join(json.dumps({"id": str(n), "text": f"{name} {n}"}) + "\n" for n in range(count))
        (root / name / "texts.jsonl").write_text(texts)


def test_mixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_parts(tmp_path)
    common = ["--root", str(tmp_path), "--texts", "big=3", "small=1", "--conversations", "small"]
    counts = mixture.main(["--out", str(tmp_path / "mix"), *common])
    assert counts["texts"] == 48 and counts["conversations"] == counts["images"] == 12, "until small is used up"
    texts = [one.id for one in read_texts(tmp_path / "mix/texts.jsonl")]
    parts = Counter(name.split("/")[0] for name in texts)
    assert parts == {"big": 36, "small": 12} and len(set(texts)) == 48
    assert texts[:36] != sorted(texts)[:36] and "small" in " ".join(texts[:16]), "parts are mixed, not in a row"
    images = {image.id: image.picture for image in read_images(tmp_path / "mix/images.jsonl")}
    talks = list(read_conversations(tmp_path / "mix/conversations.jsonl"))
    assert {talk.image for talk in talks} == images.keys()
    assert str(images["small/3.jpg"]).endswith("mix/../small/images/3.jpg")

    mixture.main(["--out", str(tmp_path / "again"), *common])
    assert (tmp_path / "again/texts.jsonl").read_bytes() == (tmp_path / "mix/texts.jsonl").read_bytes()
    mixture.main(["--out", str(tmp_path / "other"), *common, "--seed", "1"])
    assert (tmp_path / "other/texts.jsonl").read_bytes() != (tmp_path / "mix/texts.jsonl").read_bytes()

    with pytest.raises(ValueError, match=r"big has 60 rows and the mixture takes 75; lower its weight or --total"):
        mixture.main(["--out", str(tmp_path / "mix"), *common, "--total", "100"])
    mixture.main(["--out", str(tmp_path / "mix"), *common, "--total", "100", "--repeat"])
    texts = [one.id for one in read_texts(tmp_path / "mix/texts.jsonl")]
    assert len(set(texts)) == 100 and Counter(name.rpartition("#")[2] for name in texts if "#" in name) == {
        "1": 15 + 12, "2": 1
    }  # fmt: skip


def test_a_killed_mixture_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_parts(tmp_path)
    common = ["--root", str(tmp_path), "--texts", "big", "small", "--conversations", "small"]
    mixture.main(["--out", str(tmp_path / "whole"), *common])
    monkeypatch.setattr(keeping.Keeper.__init__, "__defaults__", (5,))
    add, left = keeping.Keeper.add, 33

    def dying(self: keeping.Keeper, name: str, row: keeping.Row) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        add(self, name, row)

    monkeypatch.setattr(keeping.Keeper, "add", dying)
    with pytest.raises(KeyboardInterrupt):
        mixture.main(["--out", str(tmp_path / "killed"), *common])
    assert json.loads((tmp_path / "killed/progress.json").read_text())["done"] == 30
    left = 10_000
    mixture.main(["--out", str(tmp_path / "killed"), *common])
    assert left == 10_000 - (24 + 12 + 12 - 30), "only what was missing is written"
    for file in ("texts", "conversations", "images", "statistics"):
        one, other = (tmp_path / folder / f"{file}.jsonl" for folder in ("killed", "whole"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("words", [["a=x"], ["a=0"], ["a=-1"], ["a=inf"], ["=1"], ["a", "a=2"]])
def test_weights_that_are_none(words: list[str]) -> None:
    with pytest.raises(ValueError, match="is not NAME=WEIGHT"):
        mixture.weights_of(words)


def test_shares_add_up() -> None:
    available = {"a": 100, "b": 100, "c": 100}
    counts = mixture.shares({"a": 1, "b": 1, "c": 1}, available, 100, repeat=False)
    assert sum(counts.values()) == 100 and max(counts.values()) - min(counts.values()) == 1
    assert mixture.shares({"a": 0.1, "b": 0.3}, available, None, repeat=False) == {"a": 33, "b": 100}


def test_a_mixture_of_a_mixture_finds_its_pictures(tmp_path: Path) -> None:
    make_parts(tmp_path)
    for name in ("big", "small"):
        for n in range(60):
            (tmp_path / name / "images").mkdir(exist_ok=True)
            (tmp_path / name / f"images/{n}.jpg").write_bytes(b"")
    common = ["--root", str(tmp_path), "--conversations"]
    mixture.main(["--out", str(tmp_path / "inner"), *common, "small"])
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    for out in (tmp_path / "outer", tmp_path / "elsewhere/deep/outer"):
        mixture.main(["--out", str(out), *common, "inner", "big", "--talks", "20"])
        images = {image.id: image.picture for image in read_images(out / "images.jsonl")}
        assert {name.rpartition("/")[0] for name in images} == {"inner/small", "big"}
        assert all(isinstance(path, Path) and path.is_file() for path in images.values())
        assert {talk.image for talk in read_conversations(out / "conversations.jsonl")} <= images.keys()
        assert all((out / row["image"]).is_file() for row in rows_of(out / "statistics.jsonl"))


def test_a_mixture_leaves_its_parts_alone(tmp_path: Path) -> None:
    make_parts(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "small")
    before = {file: file.read_bytes() for file in (tmp_path / "small").glob("*")}
    for out in ("small", "big/../small", "link"):
        with pytest.raises(ValueError, match=r"--out .* is a part of the mixture, small; give a folder of its own"):
            mixture.main(["--out", str(tmp_path / out), "--root", str(tmp_path), "--texts", "big", "small"])
    assert {file: file.read_bytes() for file in (tmp_path / "small").glob("*")} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--total", "0"], "--total 0: must be at least 1, or left out"),
        (["--total", "-3"], "--total -3: must be at least 1, or left out"),
        (["--statistics", "-1"], "--statistics -1: must be at least 0"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--talks", "5"], "--talks 5 is a number of conversations; give --conversations too"),
        (["--total", "1"], "small gives none of 1 rows by its weight; raise that, or leave it out"),
        (["--images", "bare"], "--images bare: .*bare has no images.jsonl; leave it out"),
    ],
)
def test_a_mixture_refuses_numbers_that_make_none(tmp_path: Path, words: list[str], said: str) -> None:
    make_parts(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/recipe.json").write_text("{}")
    with pytest.raises(ValueError, match=said):
        mixture.main(["--out", str(tmp_path / "mix"), "--root", str(tmp_path), "--texts", "big=3", "small", *words])
    assert not (tmp_path / "mix/recipe.json").exists()


def test_a_part_without_rows_is_named() -> None:
    with pytest.raises(ValueError, match="b has no rows to give; leave it out"):
        mixture.shares({"a": 1, "b": 1}, {"a": 5, "b": 0}, None, repeat=True)
