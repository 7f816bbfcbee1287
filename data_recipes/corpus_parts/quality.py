"""Which texts are worth learning from: lengths, letters, repetition, leftovers of markup. The rules are our own."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from unicodedata import category

from corpus_parts.words import words_of

_MARKUP = re.compile(r"https?://|www\.|<[a-zA-Z/][^>]*>|&[a-z]+;|\{[^}]*\}|\[[^\]]*\]\(|lorem ipsum", re.IGNORECASE)
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffd]")


@dataclass(frozen=True)
class Quality:
    """Limits that a text has to keep.

    Attributes:
        min_words, max_words: words between blanks; of scripts without blanks, letters (`words.words_of`).
        min_letters: share of letters, with their marks, among the characters that are not blank.
        max_repeats: share of the commonest word, in texts of ten words or more.
    """

    min_words: int = 3
    max_words: int = 400
    min_letters: float = 0.6
    max_repeats: float = 0.3

    def fault(self, text: str) -> str | None:
        """Why a text is left out, or None."""
        words = words_of(text)
        if not self.min_words <= len(words) <= self.max_words:
            return f"it has {len(words)} words, outside {self.min_words} to {self.max_words}"
        if _HALF_PAIR.search(text):
            return "it holds half a surrogate pair, which no file can store"
        if _CONTROL.search(text):
            return "it holds control or replacement characters"
        if found := _MARKUP.search(text):
            return f"it holds markup or an address: {found[0][:20]!r}"
        letters = _letters(text) / sum(map(len, text.split()))
        if letters < self.min_letters:
            return f"{letters:.0%} of it are letters, less than {self.min_letters:.0%}"
        if len(words) >= 10:
            commonest = Counter(word.lower() for word in words).most_common(1)[0][1] / len(words)
            if commonest > self.max_repeats:
                return f"one word is {commonest:.0%} of it, more than {self.max_repeats:.0%}"
        return None


def _letters(text: str) -> int:
    """How many letters, and marks on them: in Hindi or Thai a vowel is no letter of its own."""
    letters = sum(map(str.isalpha, text))
    return letters if text.isascii() else letters + sum(category(character).startswith("M") for character in text)
