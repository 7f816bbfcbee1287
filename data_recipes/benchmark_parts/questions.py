"""A row of a table as a question of ours: the turn that is asked, the answer, its choices, its groups.

The turn ends with what answer is wanted, in the words that LLaVA's and InternVL's data use, so that a model tuned on
them has learned to follow it; the paper does not state its prompts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from itertools import takewhile
from string import ascii_uppercase
from typing import Any

Row = dict[str, str]
Question = dict[str, Any]
Form = Callable[[Row], Question]

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Answer the question using a single word or phrase."
YES_OR_NO = "Please answer yes or no."
UNLISTED = "ABCDE"  # where the choices are in the picture, and nothing says how many
_ASKS_FOR_LETTERS = re.compile(r"option'?s letter|(?:with|select|choose) (?:the|a) letter", re.IGNORECASE)
_MARK = re.compile(r"<image(?: \d+)?>")
SHOWN_BEFORE = "the picture"  # where a text shows its one picture once more


def options(row: Row) -> Question:
    """Choices in columns A, B, ...; without any, a question of MMMU whose answer is free: a text, or a list of them."""
    texts = {letter: row[letter] for letter in ascii_uppercase if letter in row}
    hint = [f"Hint: {row['hint']}"] if "hint" in row else []
    lines = [*hint, row["question"], *(f"{letter}. {text}" for letter, text in texts.items())]
    answer = row["answer"].strip()
    if not texts:
        return _question([*lines, PHRASE], answer)
    if answer not in texts or len(texts) < 2:
        raise ValueError(f"its answer {answer} is none of two or more choices: it has {', '.join(texts)}")
    return _question([*lines, LETTER], answer, choices=[*texts], texts=[*texts.values()])


def letters(row: Row, *, choices: str | None = None) -> Question:
    """Choices within the question's own text, or in the picture; the answer begins with its letter.

    choices: the letters, where the text does not list them. Where several are right, `A, C`, all of them make the
    answer, and there are no choices: the answer is none of them.
    """
    answer = row["answer"].strip()
    told = [] if _ASKS_FOR_LETTERS.search(row["question"]) else [LETTER]
    if several := re.fullmatch(r"[A-Z](?:\s*,\s*[A-Z])+", answer):
        right = ", ".join(sorted(re.findall(r"[A-Z]", several[0])))
        return _question([row["question"], *told], right)
    begun = re.match(r"\(?([A-Z])\b", answer)
    if begun is None:
        raise ValueError(f"its answer {row['answer']!r} begins with no letter of a choice")
    listed = choices or _listed(row["question"]) or UNLISTED
    last = max(listed[-1], begun[1], "B")  # two at least, and what is right is one of them
    return _question([row["question"], *told], begun[1], choices=[*_up_to(last)])


def yes_or_no(row: Row) -> Question:
    """A question whose answer is yes or no."""
    answer = row["answer"].strip().capitalize()
    if answer not in ("Yes", "No"):
        raise ValueError(f"its answer is {row['answer']!r}, neither yes nor no")
    told = [] if "yes or no" in row["question"].lower() else [YES_OR_NO]
    return _question([row["question"], *told], answer, choices=["Yes", "No"])


def hallusionbench(row: Row) -> Question:
    """The index ends in set, figure and question; HallusionBench also counts those of one figure, or one question."""
    parts = row["index"].split("_")
    if len(parts) < 4:
        raise ValueError(f"its index {row['index']} does not end in set, figure and question")
    number, figure, question = parts[-3:]
    family = f"{row.get('l2-category', '')}_{number}"
    return yes_or_no(row) | {"groups": {"figure": f"{family}_{figure}", "question": f"{family}_{question}"}}


def _listed(text: str) -> str:
    """Letters that a text lists as choices, from A on without a gap: `A.`, `(A)`, `A)`, `A-E`, or `A, B, and C`."""
    found = set(re.findall(r"(?:^|[\s(])([A-Z])[.):]", text))
    for one in re.findall(r"\b[A-Z](?:\s*,\s*(?:and |or )?[A-Z]\b|\s+(?:and|or)\s+[A-Z]\b)+", text):
        found |= set(re.findall(r"\b[A-Z]\b", one))
    for first, last in re.findall(r"\b([A-Z])(?:\s?[-–]\s?| to )([A-Z])\b", text):
        found |= set(_up_to(last)) - set(_up_to(first)[:-1])
    return "".join(takewhile(found.__contains__, ascii_uppercase))


def _up_to(last: str) -> str:
    return ascii_uppercase[: ascii_uppercase.index(last) + 1]


def _question(
    lines: list[str], answer: str, *, choices: list[str] | None = None, texts: list[str] | None = None
) -> Question:
    first, *also = _alternatives(answer) if not choices else [answer]
    asked: Question = {"question": _marked_once("\n".join(line.strip() for line in lines)), "answer": first}
    more = {"also": also, "choices": choices, "texts": texts}
    return asked | {name: value for name, value in more.items() if value}


def _alternatives(answer: str) -> list[str]:
    """A free answer, which MMMU writes as a list where there are several ways to put it."""
    if not re.fullmatch(r"\[.*\]", answer, re.DOTALL):
        return [answer]
    try:
        listed = [str(one).strip() for one in ast.literal_eval(answer)]
    except (SyntaxError, ValueError):
        return [answer]
    return [one for one in listed if one] or [answer]


def _marked_once(text: str) -> str:
    """MMMU marks its pictures, `<image 1>`; a text with one picture keeps the first mark."""
    first = _MARK.search(text)
    if first is None:
        return text
    before, after = text[: first.start()], text[first.end() :]
    return f"{before}<image>{_MARK.sub(SHOWN_BEFORE, after)}"
