"""Running text to sentences and to passages of whole sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
_END = re.compile(r"""[.!?…]["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9])|[。！？]\s*""")
_PARAGRAPH = re.compile(r"\n\s*\n")


def paragraphs(text: str) -> Iterator[str]:
    """Parts between blank lines, each on one line."""
    for part in _PARAGRAPH.split(text.replace("\r\n", "\n")):
        if joined := " ".join(part.split()):
            yield joined


def sentences(paragraph: str) -> Iterator[str]:
    """Sentences: an end mark, then a capital or a digit, and no abbreviation or initial before it."""
    start = 0
    for end in _END.finditer(paragraph):
        said = paragraph[start : end.start()]
        last = said.rpartition(" ")[2].lstrip("(\"'").lower()
        if paragraph[end.start()] == "." and (last in _SHORT or (len(last) == 1 and last.isalpha())):
            continue
        yield paragraph[start : end.end()].strip()
        start = end.end()
    if rest := paragraph[start:].strip():
        yield rest


def passages(paragraph: str, max_words: int) -> Iterator[str]:
    """Whole sentences, as many as fit into `max_words`; a longer sentence stands alone, and is filtered out later."""
    held: list[str] = []
    words = 0
    for sentence in sentences(paragraph):
        length = len(sentence.split())
        if held and words + length > max_words:
            yield " ".join(held)
            held, words = [], 0
        held.append(sentence)
        words += length
    if held:
        yield " ".join(held)
