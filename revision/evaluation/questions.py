"""Questions about test pictures: greedy answers by exact match, and choices ranked by likelihood, seen and blind."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from revision.evaluation.benchmarks import Question
from revision.evaluation.reader import Reader
from revision.records import IMAGE_MARK

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans({mark: " " for mark in string.punctuation})
_SLACK = 2  # tokens generated beyond the longest right answer: enough to see that an answer goes on


def normalise(answer: str) -> str:
    """Lower case, punctuation and articles dropped, blanks merged: what exact match compares."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def matches(prediction: str, answer: str) -> bool:
    """Exact match after normalisation."""
    return normalise(prediction) == normalise(answer)


def most_frequent_answers(questions: Sequence[Question]) -> dict[str, str]:
    """For each kind, the right answer that occurs most often: what the best model would say that answers all alike.

    Answers count alike when they match; ties go to the first in the alphabet.
    """
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.kind, Counter())[normalise(question.answer)] += 1
    return {kind: min(counter, key=lambda answer: (-counter[answer], answer)) for kind, counter in counts.items()}


def answer_questions(
    reader: Reader, questions: Sequence[Question], embeddings: np.ndarray, *, max_new_tokens: int
) -> list[dict[str, Any]]:
    """Answers the questions of one track with and without the picture: one row of plain values a question.

    embeddings: float [n, d], the picture of each question.
    A row holds: `says` and `says_blind` (greedy answers), `correct` and `correct_blind` (exact match); where the
    question has choices, `chooses`, `chooses_blind` (the likeliest, end of turn included), `chosen`, `chosen_blind`
    (whether it is right); `constant`, whether the most frequent answer of the kind would be right.
    """
    constant = most_frequent_answers(questions)
    turns = [with_mark(question.question) for question in questions]
    rows: list[dict[str, Any]] = [
        {
            "row": "question",
            "id": question.id,
            "image": question.image,
            "track": question.track,
            "kind": question.kind,
            "question": question.question,
            "answer": question.answer,
            "constant": matches(constant[question.kind], question.answer),
        }
        for question in questions
    ]
    longest = max(len(reader.answer_ids(question.answer)) for question in questions)
    for suffix, pictures in (("", embeddings), ("_blind", None)):
        prompts = [reader.prompt(turn, None if pictures is None else pictures[i]) for i, turn in enumerate(turns)]
        kind = "questions, blind" if pictures is None else "questions"
        answers = reader.answers(prompts, min(max_new_tokens, longest + _SLACK), kind)
        for row, answer in zip(rows, answers, strict=True):
            row |= {f"says{suffix}": answer, f"correct{suffix}": matches(answer, row["answer"])}
        closed = [i for i, question in enumerate(questions) if question.choices]
        scores = reader.log_probs(
            [prompts[i] for i in closed],
            [[reader.answer_ids(choice) for choice in questions[i].choices] for i in closed],
            f"{kind}, choices",
        )
        for i, values in zip(closed, scores, strict=True):
            choice = questions[i].choices[int(np.argmax(values))]
            rows[i] |= {f"chooses{suffix}": choice, f"chosen{suffix}": choice == questions[i].answer}
    return rows


def with_mark(question: str) -> str:
    """The user's turn: the question as it stands where it marks the picture itself, else after a mark of its own."""
    return question if IMAGE_MARK in question else f"{IMAGE_MARK}\n{question}"
