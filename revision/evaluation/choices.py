"""Which of a question's choices a free answer names: what benchmarks of letters and of yes or no count as right.

An answer is read by the first of these rules that decides; where none does, it names no choice, and counts as wrong.

1. It is a choice, or what one stands for (`texts`), but for marks around it: `B`, `(B)`, `a dog.`
2. It says which: `answer is (B)`, `Answer: B`, `\\boxed{B}`; of several, the last.
3. It begins with a choice and a mark behind it, or with a choice that is a word: `B. a dog`, `B) a dog`, `Yes, it is`.
4. It speaks of `option B` or `choice B`; of several, the last.
5. Of the texts, exactly one stands in it; of texts that stand in one another, the longest counts.
6. Of all choices, exactly one stands in it as a word of its own, outside of the texts.

Single letters are choices as capitals alone, and two of them are words as well. An `A` that begins a sentence, before
a word in small letters, is an article unless that word follows letters (`A is right`, `A or B`); an `I` before one or
before an apostrophe is a pronoun. These are the rules that evaluations without a judge share, made stricter where those
read what nobody wrote; which the paper used, it does not say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = " \t\n.,:;!?()[]{}'\"*`"
_VERDICT = re.compile(r"(?i:\banswer\s*(?:is|:|=)+)[\s\"'*:(\[]*([A-Za-z]+)\b|\\boxed\{[\s(]*(?:\\text\{)?([A-Za-z]+)")
_MENTION = re.compile(r"(?i:\b(?:option|choice))\s*[\"'*:(\[]*([A-Za-z]+)\b")
_AFTER_A_LETTER = (
    r"(?:is|was|or|and|nor|but|not|over|rather|instead|than|vs|versus|because|since|as|while|seems|looks|fits|matches|"
    r"shows|describes|would|must|should)\b"
)
_SENTENCE = r"(?:^|[.!?:;\n\"'*(\[]\s*)"  # what an article with a capital stands behind
_WORD_A = re.compile(rf"(?:(?P<before>{_SENTENCE})A\b(?=\s+(?!{_AFTER_A_LETTER})[a-z])|\bA(?=-))")
_WORD_I = re.compile(r"\bI\b(?=['\u2019]|\s+[a-z])")


def named_choice(answer: str, choices: Sequence[str], texts: Sequence[str] = ()) -> str | None:
    """The choice that a free answer names, or None where it names none or leaves it open.

    choices: at least two, all different. texts: what each stands for, in the same order; empty where they stand for
    themselves.
    """
    meant = {choice: _words(text) for choice, text in zip(choices, texts or choices, strict=True)}
    whole = [choice for choice in choices if _is(answer.strip(_MARKS), choice)]
    whole = whole or [choice for choice, text in meant.items() if text and text == _words(answer)]
    if len(whole) == 1:
        return whole[0]
    plain = _letters(answer)
    verdicts = [first or second for first, second in _VERDICT.findall(plain)]
    for found in (_last(verdicts, choices), _opening(plain, choices), _last(_MENTION.findall(plain), choices)):
        if found is not None:
            return found
    if len(by_text := _standing(meant, _words(answer))) == 1:
        return by_text[0]
    outside = _without(plain, texts)
    edge = "0-9A-Za-z_\u00c0-\u024f"  # of words in Latin letters; Chinese has no blanks between words
    named = [one for one in choices if re.search(rf"(?<![{edge}]){re.escape(one)}(?![{edge}])", outside, _case(one))]
    return named[0] if len(named) == 1 and len(by_text) == 0 else None


def same_letters(answer: str, right: str) -> bool:
    """Whether an answer names the same letters as `A, C`, in any order: `C and A`, `AC`."""
    plain = _letters(answer)
    words = re.findall(r"\b[A-Z]+\b", plain)
    return {letter for word in words for letter in word} == set(re.findall(r"[A-Z]", right))


def _letters(answer: str) -> str:
    """An answer whose articles and pronouns are no letters."""
    return _WORD_I.sub("_", _WORD_A.sub(lambda found: f"{found['before'] or ''}_", answer))


def _case(choice: str) -> re.RegexFlag:
    return re.NOFLAG if len(choice) == 1 else re.IGNORECASE


def _is(word: str, choice: str) -> bool:
    return re.fullmatch(re.escape(choice), word, _case(choice)) is not None


def _last(words: Sequence[str], choices: Sequence[str]) -> str | None:
    """The last choice among some words."""
    found = [choice for word in words for choice in choices if _is(word, choice)]
    return found[-1] if found else None


def _opening(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer begins with; behind a single letter stands a mark that can end a label, or the line."""
    begun = re.match(r"[\s(\[*\"']*([A-Za-z]+)([^\w]*)", answer)
    if begun is None:
        return None
    word, after = begun.groups()
    if len(word) == 1 and not re.match(
        r"\*{0,2}[.):\]]|\s*\n|,(?!\s*(?:and |or )?[A-Z]\b)", after + answer[begun.end() :]
    ):
        return None
    found = [choice for choice in choices if _is(word, choice)]
    return found[0] if found else None


def _standing(meant: dict[str, str], answer: str) -> list[str]:
    """Choices whose texts stand in an answer, but for those that stand in a longer one that does."""
    found = {choice: text for choice, text in meant.items() if text and f" {text} " in f" {answer} "}
    texts = [text for choice, text in found.items() if len(choice) > 1 or text != choice.lower()]
    return [
        choice
        for choice, text in found.items()
        if text in texts and not any(text != other and f" {text} " in f" {other} " for other in texts)
    ]


def _without(answer: str, texts: Sequence[str]) -> str:
    """An answer without what the choices stand for, whose own letters are no choices."""
    for text in sorted(texts, key=len, reverse=True):
        if len(text.strip(_MARKS)) > 1:
            answer = re.sub(re.escape(text.strip(_MARKS)), " ", answer, flags=re.IGNORECASE)
    return answer


def _words(text: str) -> str:
    """Lower case, marks dropped but for those within numbers, blanks merged."""
    return " ".join(re.findall(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+", text.lower()))
