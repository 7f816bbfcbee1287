"""Running text to sentences and to passages of whole sentences; it may come in blocks that fit into memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

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


def pieces(blocks: Iterable[str], level: str, max_words: int) -> Iterator[str]:
    """A text as sentences, as passages, or as the whole document that it is.

    Args:
        blocks: the text, cut anywhere, with "\\n" for line ends. Sentences and passages are made without holding more
            than one of them and a block; a document is held as a whole.
        level: `sentence`, `passage` or `document`.
        max_words: of a passage.
    """
    if level == "document":
        if whole := " ".join("".join(blocks).split()):
            yield whole
        return
    for _, parts in groupby(_numbered(blocks), key=itemgetter(0)):
        cut = _cut(part for _, part in parts)
        yield from _stripped(cut) if level == "sentence" else _gathered(cut, max_words)


def _numbered(blocks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Paragraphs in parts, each with its paragraph's number, in which every run of blanks is one blank."""
    blanks, number, is_new = "", 0, True
    for block in blocks:
        text = blanks + block
        body = text.rstrip()
        blanks = text[len(body) :]  # the next block may go on with them
        for place, part in enumerate(_PARAGRAPH.split(body)):
            is_new = is_new or place > 0
            if joined := " ".join(part.split()):
                number += is_new
                yield number, joined if is_new or not part[0].isspace() else f" {joined}"
                is_new = False


def paragraphs(text: str) -> Iterator[str]:
    """Parts between blank lines, each on one line."""
    for part in _PARAGRAPH.split(text.replace("\r\n", "\n")):
        if joined := " ".join(part.split()):
            yield joined


def sentences(paragraph: str) -> Iterator[str]:
    """Sentences: an end mark, then no small letter, and no abbreviation or initial before it.

    So what follows is a capital of any script, a digit, or a letter of a script without capitals.
    """
    return _stripped(_cut([paragraph]))


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


def _stripped(cut: Iterable[str]) -> Iterator[str]:
    return (sentence.strip() for sentence in cut)


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
