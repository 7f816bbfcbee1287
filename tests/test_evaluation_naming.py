"""Naming, captions and questions: what is made of likelihoods, with readers whose likelihoods are known."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from revision.evaluation.benchmarks import Picture, Question
from revision.evaluation.naming import Candidate, centred, ranks, read_pictures_aloud
from revision.evaluation.questions import answer_questions, matches, most_frequent_answers, normalise, with_mark
from revision.evaluation.reader import Reader
from revision.evaluation.report import report, score_tables
from revision.evaluation.scoring import Prompt
from revision.evaluation.sheet import draw_pictures, draw_sheet

NAMES = [f"thing {letter}" for letter in "abcdefgh"]


class KnownReader(Reader):
    """Log p(answer | picture) is a prior of its letter plus `sight` times the picture's coordinate of that letter.

    An answer is one token, the place of its letter, and an end.
    """

    def __init__(self, sight: float, answer: str = "thing a") -> None:
        self.sight = sight
        self.answer = answer
        self.prior = -10.0 - 3.0 * np.arange(8)

    def prompt(self, turns: Any, picture: np.ndarray | None) -> Prompt:
        return Prompt(ids=[0], picture=picture)

    def opening_ids(self, answer: str) -> list[int]:
        return ["abcdefgh".index(answer[-1])]

    def answer_ids(self, answer: str) -> list[int]:
        return [*self.opening_ids(answer), 99]

    def log_probs(
        self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[Sequence[int]]], title: str
    ) -> list[np.ndarray]:
        found = []
        for prompt, some in zip(prompts, continuations, strict=True):
            letters = [ids[0] for ids in some]
            seen = np.zeros(8) if prompt.picture is None else self.sight * prompt.picture
            found.append((self.prior + seen)[letters])
        return found

    def answers(self, prompts: Sequence[Prompt], max_new_tokens: int, title: str) -> list[str]:
        return [f"blind {self.answer}" if prompt.picture is None else self.answer for prompt in prompts]


def pictures_of(names: list[str], folder: Path = Path("pictures")) -> list[Picture]:
    return [Picture(f"p{i}", folder / f"{i}.png", name, name, "known") for i, name in enumerate(names)]


def read(sight: float, names: list[str] = NAMES, **changes: Any) -> list[dict[str, Any]]:
    basis = dict(zip(NAMES, np.eye(8), strict=True))
    arguments: dict[str, Any] = {"prompt": "<image>", "candidates": 8, "others": 3, "max_new_tokens": 4, "seed": 0}
    embeddings = np.stack([basis[name] for name in names])
    # The answer ends in the letter that the reader knows a name by, and is not the name.
    pool = {name: Candidate(f"This is {name}", vector) for name, vector in basis.items()}
    return read_pictures_aloud(KnownReader(sight), pictures_of(names), embeddings, pool, **{**arguments, **changes})


def test_ranks_and_centring() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert ranks(scores, np.array([2, 0])).tolist() == [2, 3]  # a model that cannot tell names apart is last
    np.testing.assert_array_equal(centred(scores), [[1.5, 0.5, 1.0], [-1.5, -0.5, -1.0]])


def test_pmi_sees_through_the_prior() -> None:
    rows = read(sight=1.0)  # far less than what the prior puts between names
    assert [row["rank"] for row in rows] == [1] * 8
    assert [row["top"][0] for row in rows] == NAMES
    assert [row["rank_likelihood"] for row in rows] == list(range(1, 9))  # the order of the prior
    assert [row["rank_blind"] for row in rows] == list(range(1, 9))
    assert [row["rank_encoder"] for row in rows] == [1] * 8
    assert {row["candidates"] for row in rows} == {8}


def test_a_blind_model_gains_nothing_by_ties() -> None:
    rows = read(sight=0.0)
    assert [row["rank"] for row in rows] == [8] * 8
    assert {row["nll_other"] - row["nll"] for row in rows} == {0.0}


def test_caption_likelihoods_and_margin() -> None:
    rows = read(sight=2.0)
    for place, row in enumerate(rows):
        assert row["nll_blind"] == pytest.approx(10 + 3 * place)
        assert row["nll"] == pytest.approx(10 + 3 * place - 2)
        assert row["nll_other"] == pytest.approx(10 + 3 * place)  # no other picture shows it
        assert (row["tokens"], row["says"]) == (2, "thing a")


def test_groups_rank_among_their_own_candidates() -> None:
    rows = read(sight=1.0, names=NAMES[:6], candidates=3)
    assert {row["candidates"] for row in rows} == {3}
    assert [row["rank"] for row in rows] == [1] * 6


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("The red.", "red", True),
        ("  A  CAT!", "cat", True),
        ("two", "2", False),
        ("red and blue", "red", False),
        ("an answer", "answer the", True),
        ("theatre", "atre", False),
        ("A", "A", True),
        ("", "A", False),
        ("C", "A, C", False),
        ("-5", "5", False),
        ("-5.", "-5", True),
        ("1,000", "1000", True),
        ("3.5", "35", False),
        ("about 3.5 cm", "about 3.5cm", True),
        ("...", "+", False),
        ("", "?", False),
        (" + ", "+", True),
        ("12", "1,2", False),
        ("1, 2", "1,2", True),
        ("1,000,000.5", "1000000.5", True),
        (".5", "5", False),
        (".5", "0.5", True),
        ("-.5", "-0.5", True),
    ],
)
def test_exact_match(prediction: str, answer: str, right: bool) -> None:
    assert matches(prediction, answer) is right


def test_normalise() -> None:
    assert normalise("  The ice-cream, and a  Cone. ") == "ice cream and cone"


def question(number: int, answer: str, kind: str = "letter", choices: tuple[str, ...] = ()) -> Question:
    return Question(f"q{number}", f"p{number}", "Which?", answer, kind, "known", choices)


def test_most_frequent_answer_by_kind() -> None:
    questions = [question(0, "Red"), question(1, "red."), question(2, "blue"), question(3, "yes", "yes/no")]
    assert most_frequent_answers(questions) == {"letter": "red", "yes/no": "yes"}


def test_answers_and_choices_with_and_without_picture() -> None:
    questions = [
        question(0, "thing a"),
        question(1, "thing b", choices=("thing a", "thing b")),
        question(2, "thing c", choices=("thing c", "thing d")),
    ]
    rows = answer_questions(KnownReader(sight=4.0), questions, np.eye(8)[:3], max_new_tokens=8)
    assert [row["correct"] for row in rows] == [True, False, False]
    assert [row["says_blind"] for row in rows] == ["blind thing a"] * 3
    assert not any(row["correct_blind"] for row in rows)
    assert "chooses" not in rows[0]
    assert [(row["chooses"], row["chosen"]) for row in rows[1:]] == [("thing b", True), ("thing c", True)]
    # Without the picture the prior decides: a before b, c before d.
    assert [(row["chooses_blind"], row["chosen_blind"]) for row in rows[1:]] == [("thing a", False), ("thing c", True)]
    assert [row["constant"] for row in rows] == [True, False, False]


def test_questions_mark_the_picture_once() -> None:
    assert with_mark("Which?") == "<image>\nWhich?"
    assert with_mark("Which <image>?") == "Which <image>?"


def number(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}


def test_report_sets_models_side_by_side() -> None:
    scores = {
        "pretrain": {"pictures": {"known": {"token_nll": number(3.0), "naming_r5": number(0.25)}}, "questions": {}},
        "instruct": {
            "pictures": {"known": {"token_nll": number(2.0)}},
            "questions": {"known": {"all": {"exact": number(0.5)}}},
        },
    }
    pictures, questions = score_tables(scores)
    assert pictures.head == ["", "pretrain", "instruct"]
    assert pictures.lines == [
        ["NLL / token", "3.000 [2.900, 3.100]", "2.000 [1.900, 2.100]"],
        ["naming R@5", "25.0 [15.0, 35.0]", ""],
    ]
    assert questions.lines[0][:3] == ["all", "9", "50.0 [40.0, 60.0]"]
    page = report(scores, title="nano")
    assert page.startswith("# nano\n")
    assert "## known concepts, 9 pictures\n\n|  | pretrain | instruct |\n| --- | --- | --- |\n" in page
    assert pictures.rich().row_count == 2


def test_a_terminal_of_eighty_characters_holds_the_questions() -> None:
    names = ["accuracy", "accuracy_blind", "exact", "exact_blind", "exact_gain", "choice", "f1", "constant"]
    kinds = {"category": {name: number(0.5) for name in names}, "presence": {name: number(0.25) for name in names}}
    scores = {"instruct": {"pictures": {"known": {"margin": number(1.0)}}, "questions": {"known": kinds}}}
    table = score_tables(scores)[1]
    assert len(table.head) == 10  # as table.md has it
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table.rich())
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["│", "category", "│", "9", *["│", "50.0"] * 4, "│"] in lines
    assert ["│", "│", *["│", "[40.0,", "60.0]"] * 4, "│"] in lines


def test_sheet_has_a_card_for_every_picture(tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "black", "orange", "purple", "brown", "gray"]
    for place, colour in enumerate(colours):
        Image.new("RGB", (40, 20 + 5 * place), colour).save(tmp_path / f"{place}.png")
    pictures = pictures_of(NAMES, tmp_path)
    row = {
        "rank": 3,
        "top": ["a name that is far too long for the width of any card of this sheet"],
        "says": "word " * 40,
    }
    said = {model: {picture.id: row for picture in pictures} for model in ("pretrain", "instruct")}
    draw_sheet(tmp_path / "sheet.png", pictures, said, title="test")
    with Image.open(tmp_path / "sheet.png") as sheet:
        found = {colour for _, colour in sheet.getcolors(maxcolors=1 << 20) or []}
        size = sheet.size
    for colour in colours:
        assert Image.new("RGB", (1, 1), colour).getpixel((0, 0)) in found
    draw_sheet(tmp_path / "one.png", pictures[:1], {"pretrain": said["pretrain"]}, title="test")
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.size[0] < size[0] / 4
        assert sheet.size[1] < size[1] / 2


def test_sheet_names_a_file_that_is_no_picture(tmp_path: Path) -> None:
    """Of an encoder that reads something else; or that is not where the scores are made, which need its row alone."""
    (shown,) = pictures_of(NAMES[:1], tmp_path)
    said = {"pretrain": {shown.id: {"rank": 1, "top": ["a"], "says": "b"}}}
    cards = []
    for number, content in enumerate((b"<svg/>", b"RIFF")):
        other = replace(shown, path=tmp_path / f"a file of kind {number}.bin")
        other.path.write_bytes(content)
        draw_sheet(tmp_path / "sheet.png", [other], said, title="test")
        with Image.open(tmp_path / "sheet.png") as sheet:
            cards.append(np.asarray(sheet))
    assert cards[0].shape == cards[1].shape and (cards[0] != cards[1]).any(), "the names differ, and nothing else"
    draw_sheet(tmp_path / "sheet.png", [shown], said, title="test")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet).shape == cards[0].shape


def test_sheet_pictures_are_drawn_alike_from_every_track() -> None:
    tracks = {"known": pictures_of(NAMES), "unseen": pictures_of(NAMES)[:3]}
    chosen = draw_pictures(tracks, 4, seed=0)
    assert chosen[:2] == draw_pictures({"known": tracks["known"]}, 2, seed=0)
    assert len(chosen) == 4
    assert len(draw_pictures(tracks, 100, seed=0)) == 11
