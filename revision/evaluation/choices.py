"""Which of a question's choices a free answer names: what benchmarks of letters and of yes or no count as right.

An answer is read by the first of these rules that decides; where none does, it names no choice, and counts as wrong.

1. It is a choice, but for marks around it: `B`, `(B)`, `dark red.`
2. It says which: `answer is (B)`, `Answer: B`, `\\boxed{B}`; of several, the last.
3. It begins with a choice that is not the first word of a sentence: `B. a dog`, `Yes, it is`.
4. Of all choices, exactly one stands in it as a word of its own.
5. Of what the choices stand for (`texts`), exactly one is the answer, or else stands in it.

Choices of one letter are told by their case, since `a` is an article: a capital A before a word in small letters is
one too. Longer choices are told by their letters alone. These are the rules that evaluations without a judge share
(VLMEvalKit's exact matching, lmms-eval); which of them the paper used, it does not say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = " \t\n.,:;!?()[]{}'\"*`"
_SAID = re.compile(r"\b(?:answer|option|choice)\s*(?:is|:|=)?\s*[\s\"'*:]*\(?([A-Za-z]+)\b|\\boxed\{\s*\(?([A-Za-z]+)")


def named_choice(answer: str, choices: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """The choice that a free answer names, or None where it names none or leaves it open.

    choices: at least two, all different. texts: what each stands for, in the same order; empty where they stand for
    themselves.
    """
    if (found := _choice_of(answer.strip(_MARKS), choices)) is not None:
        return found
    said = [first or second for first, second in _SAID.findall(answer)]
    for word in reversed(said):
        if (found := _choice_of(word, choices)) is not None:
            return found
    if (found := _opening(answer, choices)) is not None:
        return found
    named = {choice for choice in choices if _stands_in(choice, answer)}
    if len(named) == 1:
        return named.pop()
    return _by_text(answer, choices, texts)


def _choice_of(word: str, choices: Sequence[str]) -> str | None:
    """The choice that one or more words are."""
    for choice in choices:
        if word == choice or (len(choice) > 1 and word.lower() == choice.lower()):
            return choice
    return None


def _opening(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer begins with; a single letter needs a mark or the end of the line behind it."""
    begun = re.match(r"\W*([A-Za-z]+)(?=\W)(\W*)", answer)
    if begun is None:
        return None
    word, after = begun.groups()
    marked = bool(after.strip()) or "\n" in after
    return _choice_of(word, choices) if marked or len(word) > 1 else None


def _stands_in(choice: str, answer: str) -> bool:
    """Whether a choice is a word of an answer; an `A` that could be an article is none."""
    if len(choice) > 1:
        return re.search(rf"\b{re.escape(choice)}\b", answer, re.IGNORECASE) is not None
    article = r"(?!\s+[a-z])" if choice == "A" else ""
    return re.search(rf"\b{re.escape(choice)}\b{article}", answer) is not None


def _by_text(answer: str, choices: Sequence[str], texts: Sequence[str]) -> str | None:
    """The only choice whose text the answer is, or else has in it."""
    whole = _words(answer)
    meant = {choice: _words(text) for choice, text in zip(choices, texts, strict=False)}
    for fits in (lambda text: text == whole, lambda text: f" {text} " in f" {whole} "):
        found = [choice for choice, text in meant.items() if text and fits(text)]
        if len(found) == 1:
            return found[0]
    return None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
