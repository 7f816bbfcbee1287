"""The protocol of the nano corpus, held on the records themselves."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPES = Path(__file__).parent.parent / "data_recipes"
sys.path.insert(0, str(RECIPES))

from nano_parts import drawing, packages, scenes, texts  # noqa: E402
from nano_parts.captions import captions_of  # noqa: E402
from nano_parts.lexicon import UNSEEN_FAMILIES, part, read_lexicon  # noqa: E402
from nano_parts.questions import questions_about  # noqa: E402

LEXICON = read_lexicon()


def test_the_lexicon_is_whole_and_its_parts_are_disjoint() -> None:
    assert len(LEXICON) == len({c.code for c in LEXICON}) == len({c.name for c in LEXICON}) == 1427
    parts = {name: {c.code for c in part(LEXICON, name)} for name in ("training", "validation", "test")}
    assert sum(len(codes) for codes in parts.values()) == 1427
    assert not parts["training"] & (parts["validation"] | parts["test"])
    assert not parts["validation"] & parts["test"]


def test_unseen_families_train_nothing() -> None:
    assert {c.family for c in LEXICON} >= UNSEEN_FAMILIES
    assert not any(c.unseen for c in part(LEXICON, "training"))
    assert sum(c.unseen for c in part(LEXICON, "test")) >= 80


def test_enough_names_to_rank_against() -> None:
    known = [c for c in part(LEXICON, "test") if not c.unseen]
    assert len(known) >= 200 and all(c.category is not None for c in known)


def test_stage_one_texts_are_new_to_the_heads() -> None:
    import nano

    rng = np.random.default_rng(1)
    grounds = [(concept, colour) for concept in LEXICON for colour in drawing.COLOURS]
    taught = {text for concept, colour in grounds for text in captions_of(concept, rng, colour)}
    rows = list(nano.stage_one_texts([c for c in LEXICON if not c.unseen], nano.SEED))
    read = {row["text"] for row in rows}
    assert len(rows) == len({row["id"] for row in rows}) == nano.TEXTS
    assert not taught & read
    assert not any(text.startswith(f"This is {c.noun}.") for c in LEXICON if c.unseen for text in read)


def test_stage_one_meets_every_known_name_and_speaks_of_grounds_and_numbers() -> None:
    import nano

    known = [c for c in LEXICON if not c.unseen]
    said = [row["text"] for row in nano.stage_one_texts(known, nano.SEED)]
    counted = Counter(said)
    assert all(counted[f"This is {c.noun}."] >= nano.BARE for c in known)
    assert sum(text.startswith("These are ") for text in said) > 100
    assert sum(" against " in text or " before a wall of " in text for text in said) > 100


def test_records_are_a_function_of_the_seed() -> None:
    import nano

    first = [row["text"] for row in nano.stage_one_texts(LEXICON, 5)][:20]
    assert first == [row["text"] for row in nano.stage_one_texts(LEXICON, 5)][:20]
    assert first != [row["text"] for row in nano.stage_one_texts(LEXICON, 6)][:20]


@pytest.mark.parametrize(
    ("name", "noun", "plural"),
    [
        ("penguin", "a penguin", "penguins"),
        ("owl", "an owl", "owls"),
        ("unicorn", "a unicorn", "unicorns"),
        ("fox", "a fox", "foxes"),
        ("cherry blossom", "a cherry blossom", "cherry blossoms"),
        ("kitchen knife", "a kitchen knife", "kitchen knives"),
        ("ewe", "a ewe", "ewes"),
        ("x-ray", "an x-ray", "x-rays"),
        ("grapes", "grapes", None),
        ("locked with pen", "locked with pen", None),
    ],
)
def test_english(name: str, noun: str, plural: str | None) -> None:
    concept = next(c for c in LEXICON if c.name == name)
    assert concept.noun == noun
    assert concept.countable == (plural is not None)
    assert plural is None or concept.plural == plural


def test_questions_have_the_answers_that_the_picture_shows() -> None:
    rng = np.random.default_rng(0)
    things = [c for c in LEXICON if c.category is not None]
    fox = next(c for c in things if c.name == "fox")
    shown = scenes.Scene((fox,), (3,), "blue")
    asked = {q.kind: q for q in questions_about(shown, things, rng, list(drawing.COLOURS))}
    assert asked["name"].answer == "a fox" and asked["colour"].answer == "blue" and asked["count"].answer == "three"
    assert asked["category"].answer == "animal or plant"
    assert texts.caption(shown) == "These are three foxes."
    assert texts.caption(shown, texts.GROUNDS[0]) == "These are three foxes against blue."
    assert texts.caption(texts.single(fox)) == "This is a fox."
    for _ in range(20):
        (presence,) = [q for q in questions_about(shown, things, rng, ["blue"]) if q.kind == "presence"]
        assert (presence.answer == "yes") == ("a fox" in presence.question)


def test_pictures_show_what_they_say() -> None:
    glyph = drawing.openmoji("\N{FOX FACE}")
    assert glyph.size == (drawing.GLYPH, drawing.GLYPH) and glyph.mode == "RGBA"
    picture = drawing.scene([glyph] * 3, "blue")
    assert picture.size == (drawing.PICTURE, drawing.PICTURE)
    assert picture.getpixel((0, 0)) == drawing.COLOURS["blue"]
    plain = Image.new("RGB", picture.size, drawing.COLOURS["blue"])
    changed = np.any(np.asarray(picture) != np.asarray(plain), axis=2)
    for x, y in drawing.LAYOUTS[3][0]:
        column, row = round(x * drawing.PICTURE), round(y * drawing.PICTURE)
        assert changed[row - 15 : row + 15, column - 15 : column + 15].mean() > 0.5
    assert not changed[:20, :20].any()


def test_a_missing_package_or_another_file_is_named() -> None:
    with pytest.raises(ValueError, match="package no-such-package is not installed; install the pinned packages"):
        packages.find("no-such-package", "x", None)
    with pytest.raises(ValueError, match=r"holds no file x\.bin"):
        packages.find(packages.FONT[0], "x.bin", None)
    with pytest.raises(ValueError, match=r"has sha256 .* the recipe was written for 0000"):
        packages.find(packages.FONT[0], packages.FONT[1], "0000")
