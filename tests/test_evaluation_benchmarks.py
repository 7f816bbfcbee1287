"""Benchmark files: tracks, splits, limits, and the sentences for what is wrong in them. Draws of an evaluation."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from revision.evaluation.benchmarks import read_pictures, read_questions
from revision.evaluation.draws import naming_groups, other_pictures

Row = dict[str, Any]
WriteRows = Callable[[list[Row]], Path]


def picture_row(number: int, **changes: Any) -> Row:
    row = {
        "id": f"p{number}",
        "image": f"pictures/{number}.png",
        "name": f"name {number}",
        "caption": f"a thing {number}",
    }
    return row | {"track": "known" if number % 2 else "unseen", "split": "test"} | changes


def question_row(number: int, **changes: Any) -> Row:
    row = {"id": f"q{number}", "image": f"p{number}", "question": "What colour?", "answer": "red", "kind": "colour"}
    return row | {"track": "known", "split": "test"} | changes


@pytest.fixture
def write(tmp_path: Path) -> WriteRows:
    def write_rows(rows: list[Row]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write_rows


def test_pictures_come_by_track_and_split(write: WriteRows, tmp_path: Path) -> None:
    path = write([picture_row(1), picture_row(2), picture_row(3), picture_row(4, split="validation")])
    found = read_pictures(path, split="test")
    assert {track: [item.id for item in items] for track, items in found.items()} == {
        "known": ["p1", "p3"],
        "unseen": ["p2"],
    }
    assert found["known"][0].path == tmp_path / "pictures/1.png"
    assert (
        read_pictures(path, split="test", image_root=tmp_path / "x")["known"][0].path == tmp_path / "x/pictures/1.png"
    )


def test_limit_is_a_seeded_draw_in_the_order_of_the_file(write: WriteRows) -> None:
    path = write([picture_row(2 * i + 1) for i in range(40)])
    ids = [item.id for item in read_pictures(path, split="test", limit=10, seed=0)["known"]]
    assert len(set(ids)) == 10
    assert ids == sorted(ids, key=lambda name: int(name[1:]))
    assert ids != [f"p{2 * i + 1}" for i in range(10)]
    assert ids == [item.id for item in read_pictures(path, split="test", limit=10, seed=0)["known"]]
    assert ids != [item.id for item in read_pictures(path, split="test", limit=10, seed=1)["known"]]


def test_questions_may_have_choices(write: WriteRows) -> None:
    path = write([question_row(1), question_row(2, choices=["red", "blue"])])
    first, second = read_questions(path, split="test")["known"]
    assert (first.choices, second.choices) == ((), ("red", "blue"))
    assert (second.image, second.answer, second.kind) == ("p2", "red", "colour")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (picture_row(1, name=""), "row 2: field 'name' is ''; it must be a text that is not empty"),
        (picture_row(1, caption=3), "row 2: field 'caption' is 3; it must be a text"),
        ({"id": "p", "split": "test"}, "row 2 has no field 'image'; a benchmark row needs it"),
        (picture_row(0), "row 2: the id 'p0' occurs twice in split test; give every row its own id"),
    ],
)
def test_wrong_picture_rows(write: WriteRows, row: Row, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_pictures(write([picture_row(0), row]), split="test")


def test_wrong_splits_and_choices(write: WriteRows) -> None:
    with pytest.raises(
        ValueError, match=r"no row of split 'dev', only of \['test'\]; set evaluate.split to one of them"
    ):
        read_pictures(write([picture_row(0)]), split="dev")
    with pytest.raises(ValueError, match="row 1: the answer 'red' is not among the choices"):
        read_questions(write([question_row(1, choices=["blue", "green"])]), split="test")


@pytest.mark.parametrize(("names", "candidates", "groups"), [(5, 8, 1), (20, 8, 3), (16, 8, 2)])
def test_every_picture_is_ranked_once_among_as_many_names(names: int, candidates: int, groups: int) -> None:
    right = [f"name {i % names}" for i in range(2 * names)]  # two pictures a name
    pool = [f"name {i}" for i in range(names)] + [f"stranger {i}" for i in range(10)]
    found = naming_groups(right, pool, candidates=candidates, seed=0)
    assert len(found) == groups
    assert sorted(np.concatenate([group.pictures for group in found])) == list(range(2 * names))
    for group in found:
        assert len(group.names) == len(set(group.names)) == candidates
        assert [group.names[column] for column in group.right] == [right[place] for place in group.pictures]
    # Names of the benchmark itself fill up before strangers do.
    strangers = sum(name.startswith("stranger") for group in found for name in group.names)
    assert strangers == (candidates - names if names < candidates else 0)


def test_too_few_names_are_all_candidates() -> None:
    (group,) = naming_groups(["a", "b"], ["a", "b", "c"], candidates=100, seed=0)
    assert sorted(group.names) == ["a", "b", "c"]


def test_other_pictures_have_other_names() -> None:
    names = ["cat", "cat", "dog", "owl", "owl", "cow"]
    found = other_pictures(names, others=3, seed=0)
    assert found.shape == (6, 3)
    for name, places in zip(names, found, strict=True):
        assert len(set(places.tolist())) == 3
        assert all(names[place] != name for place in places)
    assert other_pictures(["cat", "dog", "dog"], others=4, seed=0).shape == (3, 1)
    with pytest.raises(
        ValueError, match=r"all 3 pictures of a track are named 'cat'; the margin needs two: raise evaluate\.limit"
    ):
        other_pictures(["cat"] * 3, others=2, seed=0)


def test_other_pictures_take_memory_with_the_pictures_and_not_their_square() -> None:
    names = [f"name {number % 40}" for number in range(4000)]
    tracemalloc.start()
    try:
        found = other_pictures(names, others=4, seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.shape == (4000, 4) and peak < 2e6  # one list of the others each is 125 MB
