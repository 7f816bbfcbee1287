"""What counts as a word: what stands between blanks, and each letter of a script that is written without them."""

from __future__ import annotations

import re

THAI = "\u0e01-\u0edf"  # and Lao
_UNSPACED = (
    "\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31f0-\u31ff\uff66-\uff9d"  # Japanese syllables, Chinese phonetic signs
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    f"{THAI}\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
)
_LETTER = re.compile(f"[{_UNSPACED}]")
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """The words of a text. Chinese, Japanese, Thai, Lao, Burmese and Khmer give a word a letter, without marks."""
    found = text.split()
    if text.isascii() or not _LETTER.search(text):
        return found
    return [unit for word in found for unit in _units(word)]


def _units(word: str) -> list[str]:
    if not _LETTER.search(word):
        return [word]
    return [unit for unit in _UNIT.findall(word) if len(unit) > 1 or unit.isalnum()]
