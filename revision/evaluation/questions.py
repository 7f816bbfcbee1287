"""Questions about test pictures: greedy answers by exact match, and choices ranked by likelihood, seen and blind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from revision.evaluation.benchmarks import Question
from revision.evaluation.choices import named_choice, same_letters
from revision.evaluation.reader import Reader
from revision.records import IMAGE_MARK

_ARTICLES = {"a", "an", "the"}
# Numbers with their sign, groups of three digits and point; or words.
_WORD = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])-?\.\d+|[^\W_]+")
_SEVERAL = re.compile(r"[A-Z](?:, [A-Z])+")  # a right answer of several letters


def normalise(answer: str) -> str:
    """Lower case, marks and articles dropped but for a sign, point or comma of a number, blanks merged.

    That is what exact match compares. Single letters, as in `A` and `A, C`, are letters: none of them is an article.
    """
    words = [re.sub(r"^(-?)\.", r"\g<1>0.", word.replace(",", "")) for word in _WORD.findall(answer.lower())]
    return " ".join(word for word in words if word not in _ARTICLES or all(len(other) == 1 for other in words))


def matches(prediction: str, answer: str) -> bool:
    """Exact match after normalisation; of what that leaves nothing of, such as `+`, exact match as it stands."""
    ours, theirs = normalise(prediction), normalise(answer)
    return ours == theirs if ours and theirs else prediction.strip() == answer.strip()


def most_frequent_answers(questions: Sequence[Question]) -> dict[str, str]:
    """For each kind, the right answer that occurs most often: what the best model would say that answers all alike.

    Answers count alike when they match; ties go to the first in the alphabet.
    """
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.kind, Counter())[normalise(question.answer)] += 1
    return {kind: min(counter, key=lambda answer: (-counter[answer], answer)) for kind, counter in counts.items()}


def answer_questions(
    reader: Reader, questions: Sequence[Question], embeddings: np.ndarray, *, max_new_tokens: int, spare_tokens: int = 2
) -> list[dict[str, Any]]:
    """Answers the questions of one track with and without the picture: one row of plain values a question.

    embeddings: float [n, d], the picture of each question. spare_tokens: how far an answer may be longer than the
    longest right one of the track, within `max_new_tokens`.
    A row holds: `says` and `says_blind` (greedy answers), `correct` and `correct_blind` (exact match), `right` and
    `right_blind` (the right choice is named, see `named_choice`; without choices, exact match); where the question has
    choices, `names`, `names_blind` (the choice that the answer names, or None), `chooses`, `chooses_blind` (the
    likeliest, end of turn included), `chosen`, `chosen_blind` (whether it is right); where these are yes and no,
    `is_yes`, `yes`, `yes_blind` (whether the right answer, and the one given, is yes); `constant`, whether the most
    frequent answer of the kind would be right; `groups`, where the question has some.
    """
    constant = most_frequent_answers(questions)
    turns = [with_mark(question.question) for question in questions]
    place_of = {question.image: place for place, question in enumerate(questions)}
    rows: list[dict[str, Any]] = [
        {
            "row": "question",
            "id": question.id,
            "image": question.image,
            "track": question.track,
            "kind": question.kind,
            "question": question.question,
            "answer": question.answer,
            "constant": any(matches(constant[question.kind], answer) for answer in (question.answer, *question.also)),
        }
        | ({"groups": question.groups} if question.groups else {})
        for question in questions
    ]
    longest = max(
        len(reader.answer_ids(answer)) for question in questions for answer in (question.answer, *question.also)
    )
    tokens = min(max_new_tokens, longest + spare_tokens)
    for suffix, pictures in (("", embeddings), ("_blind", None)):
        title = "questions" if pictures is not None else "questions, blind"
        # Questions of the same words and choices about one picture, or all without one, are one question.
        asked = [
            (turn, question.choices, None if pictures is None else place_of[question.image])
            for turn, question in zip(turns, questions, strict=True)
        ]
        replies = _reply(reader, list(dict.fromkeys(asked)), embeddings, tokens, title)
        for row, question, key in zip(rows, questions, asked, strict=True):
            says, chooses = replies[key]
            exact = any(matches(says, answer) for answer in (question.answer, *question.also))
            several = _SEVERAL.fullmatch(question.answer) is not None and same_letters(says, question.answer)
            row |= {f"says{suffix}": says, f"correct{suffix}": exact, f"right{suffix}": exact or several}
            if chooses is not None:
                names = named_choice(says, question.choices, question.texts)
                row |= {f"names{suffix}": names, f"right{suffix}": names == question.answer}
                row |= {f"chooses{suffix}": chooses, f"chosen{suffix}": chooses == question.answer}
                if _asks_yes_or_no(question):
                    row |= {"is_yes": question.answer.lower() == "yes", f"yes{suffix}": (names or "").lower() == "yes"}
    return rows


def _asks_yes_or_no(question: Question) -> bool:
    return sorted(choice.lower() for choice in question.choices) == ["no", "yes"]


_Asked = tuple[str, tuple[str, ...], int | None]  # a turn, its choices, and the place of its picture or None


def _reply(
    reader: Reader, asked: Sequence[_Asked], embeddings: np.ndarray, max_new_tokens: int, title: str
) -> dict[_Asked, tuple[str, str | None]]:
    """The greedy answer to each question, and the likeliest of its choices where it has any."""
    prompts = [reader.prompt(turn, None if place is None else embeddings[place]) for turn, _, place in asked]
    answers = reader.answers(prompts, max_new_tokens, title)
    closed = [(key, prompt) for key, prompt in zip(asked, prompts, strict=True) if key[1]]
    scores = reader.log_probs(
        [prompt for _, prompt in closed],
        [[reader.answer_ids(choice) for choice in choices] for (_, choices, _), _ in closed],
        f"{title}, choices",
    )
    likeliest = {key: key[1][int(np.argmax(values))] for (key, _), values in zip(closed, scores, strict=True)}
    return {key: (answer, likeliest.get(key)) for key, answer in zip(asked, answers, strict=True)}


def with_mark(question: str) -> str:
    """The user's turn: the question as it stands where it marks the picture itself, else after a mark of its own."""
    return question if IMAGE_MARK in question else f"{IMAGE_MARK}\n{question}"
