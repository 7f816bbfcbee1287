"""Texts that have been met before, exactly or nearly: hashes, and MinHash with locality-sensitive hashing (LSH).

MinHash (Broder 1997): under a random order of all shingles, the chance that the first shingle of two texts is the same
one is the Jaccard similarity of their shingle sets. So the share of equal entries of two signatures of 64 such minima
estimates it. LSH (Indyk and Motwani 1998): signatures are cut into bands, and only texts that share a whole band are
compared. Takes about 1.5 KiB of memory a kept text.
"""

from __future__ import annotations

import hashlib
import re
import zlib

import numpy as np

from corpus_parts.words import words_of

_PERMUTATIONS, _BANDS = 64, 16  # bands of four: texts of similarity 0.8 meet with a chance of 0.9998, of 0.3 with 0.12
_PRIME = np.uint64((1 << 31) - 1)  # products of two 31-bit numbers fit into 64 bits
_WORDS = re.compile(r"\w+")


def normal_form(text: str) -> str:
    """What two texts share that are the same but for case, blanks and punctuation."""
    return " ".join(_WORDS.findall(text.lower()))


class Duplicates:
    """Remembers texts and tells whether one has been met.

    Args:
        near: Jaccard similarity of 3-word shingles from which on two texts count as one; None: exact ones only.
        seed: of the permutations.
    """

    def __init__(self, near: float | None = 0.8, seed: int = 0) -> None:
        if near is not None and not 0 < near <= 1:
            raise ValueError(f"--near {near}: must be above 0 and at most 1, or left out")
        rng = np.random.default_rng(seed)
        self.near = near
        self._factors = rng.integers(1, int(_PRIME), size=(_PERMUTATIONS, 1), dtype=np.uint64)
        self._offsets = rng.integers(0, int(_PRIME), size=(_PERMUTATIONS, 1), dtype=np.uint64)
        self._exact: set[bytes] = set()
        self._buckets: dict[bytes, int] = {}
        self._signatures: list[np.ndarray] = []

    def fault(self, text: str, *, remember: bool = True) -> str | None:
        """Why a text is one that has been met, or None; then it is remembered, unless it is not yet sure to be kept."""
        form = normal_form(text)
        digest = hashlib.blake2b(form.encode(), digest_size=8).digest()
        if digest in self._exact:
            return "it is a duplicate"
        if self.near is None:
            if remember:
                self._exact.add(digest)
            return None
        signature = self.signature(form)
        keys = [bytes([band]) + part.tobytes() for band, part in enumerate(np.split(signature, _BANDS))]
        for other in {self._buckets[key] for key in keys if key in self._buckets}:
            if similarity(signature, self._signatures[other]) >= self.near:
                return "it is a near duplicate"
        if not remember:
            return None
        self._exact.add(digest)
        for key in keys:
            self._buckets.setdefault(key, len(self._signatures))
        self._signatures.append(signature)
        return None

    def signature(self, form: str) -> np.ndarray:
        """The MinHash of a normal form, uint32 [64]."""
        words = words_of(form)
        shingles = {" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))}
        hashes = np.array([zlib.crc32(one.encode()) for one in shingles], dtype=np.uint64) % _PRIME
        return ((self._factors * hashes + self._offsets) % _PRIME).min(axis=1).astype(np.uint32)


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Share of equal entries of two signatures: an estimate of the Jaccard similarity."""
    return float(np.mean(one == other))
