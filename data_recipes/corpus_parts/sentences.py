"""Running text to sentences and to passages of whole sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from corpus_parts.words import THAI, words_of

_SHORT = {
    "mr",
    "mrs",
    "ms",
    "dr",
    "prof",
    "st",
    "vs",
    "etc",
    "e.g",
    "i.e",
    "fig",
    "no",
    "inc",
    "jr",
    "sr",
    "approx",
    "cf",
}
_END = re.compile(
    r"""[.!?…]["'”’“»«)\]]*\s+(?=["'“‘„«»¿¡(\[]?(\w))"""  # (1): the first letter of the next sentence
    r"""|[。！？｡]["'”’」』）》】]*\s*"""  # Chinese and Japanese go on without a blank
    r"|[।॥۔؟։።။។]\s+"
    rf"|(?<=[{THAI}])\s+(?=[{THAI}])"  # Thai and Lao have no stops: a blank ends a sentence, or a part of one
)
_PARAGRAPH = re.compile(r"\n\s*\n")


def paragraphs(text: str) -> Iterator[str]:
    """Parts between blank lines, each on one line."""
    for part in _PARAGRAPH.split(text.replace("\r\n", "\n")):
        if joined := " ".join(part.split()):
            yield joined


def sentences(paragraph: str) -> Iterator[str]:
    """Sentences: an end mark, then no small letter, and no abbreviation or initial before it.

    So what follows is a capital of any script, a digit, or a letter of a script without capitals.
    """
    return (sentence.strip() for sentence in _cut([paragraph]))


def passages(paragraph: str, max_words: int) -> Iterator[str]:
    """Whole sentences, as many as fit into `max_words`; a longer sentence stands alone, and is filtered out later."""
    return _gathered(_cut([paragraph]), max_words)


def _cut(parts: Iterable[str]) -> Iterator[str]:
    """The sentences of a paragraph that comes in parts, each with the blank behind it."""
    held, seen = "", 0
    for part in parts:
        held += part
        start = 0
        for end in _END.finditer(held, seen):
            if end.end() == len(held):  # the next part may belong to it
                break
            if _is_end(held[start : end.start()], end):
                yield held[start : end.end()]
                start = end.end()
        held = held[start:]
        seen = max(0, held.rfind(" ", 0, max(0, held.rfind(" "))))  # an end that is not whole has one blank at most
    if held.strip():
        yield held


def _is_end(said: str, end: re.Match[str]) -> bool:
    """Whether an end mark after `said` is one, by what stands around it."""
    if end[1] is not None and not (end[1].isdecimal() or (end[1].isalpha() and not end[1].islower())):
        return False
    last = said.rpartition(" ")[2].lstrip("(\"'«„").lower()
    return not (end[0].startswith(".") and (last in _SHORT or (len(last) == 1 and last.isalpha())))


def _gathered(cut: Iterable[str], max_words: int) -> Iterator[str]:
    held: list[str] = []
    words = 0
    for sentence in cut:
        length = len(words_of(sentence))
        if held and words + length > max_words:
            yield "".join(held).strip()
            held, words = [], 0
        held.append(sentence)
        words += length
    if held:
        yield "".join(held).strip()
