"""What a corpus holds, before anyone pays for a GPU: counts, lengths in tokens, duplicates, pictures that are missing.

Records are read once, as a stream. All are counted, and compared by 64-bit hashes (8 bytes each); a sample of them,
drawn uniformly, is tokenized as training would.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from revision.data.conversation import Encoded, encode
from revision.embeddings import hash_id
from revision.model import RevisionProcessor
from revision.model.modeling_revision import IGNORED
from revision.pictures import absence
from revision.records import Conversation, Image, Message, Pair, Text


class _Record(Protocol):
    @property
    def id(self) -> str: ...


_T = TypeVar("_T", bound=_Record)
_SHOWN = 5  # ids named of what is wrong
_BINS = 12


@dataclass
class Sampled(Generic[_T]):
    """A stream that has passed: its length, a sample in its order with places, how many records say what another one
    says, and how many have the id of another one."""

    count: int
    kept: list[tuple[int, _T]]
    duplicates: int
    repeated_ids: int


def sample_of(
    records: Iterable[_T], size: int | None, seed: int, content: Callable[[_T], str]
) -> Sampled[_T]:  # fmt: skip
    """Reads a stream to its end and keeps a uniform sample (Vitter 1985, algorithm R).

    Args:
        records: each with an `id`.
        size: records to keep; None: all.
        content: what makes two records the same, but for case and blanks.
    """
    rng, kept, count = random.Random(seed), list[tuple[int, _T]](), 0
    hashes, ids = array("Q"), array("Q")
    for count, record in enumerate(records, start=1):
        hashes.append(_hash(content(record)))
        ids.append(hash_id(record.id))
        if size is None or len(kept) < size:
            kept.append((count - 1, record))
        elif (place := rng.randrange(count)) < size:
            kept[place] = (count - 1, record)
    duplicates, repeated = (count - _distinct(some) for some in (hashes, ids))
    return Sampled(count, sorted(kept, key=lambda one: one[0]), duplicates, repeated)


def _distinct(hashes: array[int]) -> int:
    return len(np.unique(np.frombuffer(hashes, dtype=np.uint64))) if hashes else 0


@dataclass(frozen=True)
class Shown:
    """A sample as the LLM reads it."""

    id: str
    encoded: Encoded


@dataclass
class Lengths:
    """Tokens of the samples of a stage.

    Attributes:
        tokens, learned: of each sample, int64 [n]: all tokens, visual ones included, and those with a label.
        problems: id and reason of each sample that training would refuse.
        shown: the first samples.
    """

    tokens: np.ndarray
    learned: np.ndarray
    problems: list[tuple[str, str]]
    shown: list[Shown] = field(default_factory=list)

    def summary(self, records: int, max_length: int) -> dict[str, Any]:
        """Numbers for a table and a file; totals are extrapolated from the sample to all `records`."""
        found: dict[str, Any] = {"records": records, "tokenized": len(self.tokens) + len(self.problems)}
        found["refused"] = len(self.problems)
        found["first_refused"] = [{"id": name, "reason": reason} for name, reason in self.problems[:_SHOWN]]
        if not len(self.tokens):
            return found
        quantiles = np.quantile(self.tokens, [0.5, 0.95, 0.99])
        edges = np.unique(np.linspace(self.tokens.min(), self.tokens.max() + 1, _BINS + 1).astype(int))
        heights = np.histogram(self.tokens, edges)[0]
        trainable = records * len(self.tokens) / found["tokenized"]
        return {
            **found,
            "mean": float(self.tokens.mean()),
            **dict(zip(("median", "p95", "p99"), map(float, quantiles), strict=True)),
            "longest": int(self.tokens.max()),
            "above_max_length": int((self.tokens > max_length).sum()),
            "learned_share": float(self.learned.sum() / self.tokens.sum()),
            "histogram": [[int(a), int(b) - 1, int(n)] for (a, b), n in zip(pairwise(edges), heights, strict=True)],
            "tokens_an_epoch": round(self.tokens.mean() * trainable),
            "learned_an_epoch": round(self.learned.mean() * trainable),
            "exact": found["tokenized"] == records,
        }  # fmt: skip


def lengths_of(
    samples: Iterable[tuple[str, Sequence[Message]]], processor: RevisionProcessor, show: int
) -> Lengths:  # fmt: skip
    """Tokenizes (id, messages) as training does, but without a limit of length."""
    tokens, learned, problems, shown = [], [], list[tuple[str, str]](), list[Shown]()
    for name, messages in samples:
        try:
            encoded = encode(processor, messages, name=name)
        except ValueError as error:
            problems.append((name, str(error)))
            continue
        tokens.append(len(encoded.input_ids))
        learned.append(int((encoded.labels != IGNORED).sum()))
        if len(shown) < show:
            shown.append(Shown(name, encoded))
    return Lengths(np.array(tokens, dtype=np.int64), np.array(learned, dtype=np.int64), problems, shown)


def text_samples(sample: Sampled[Text], prompts: Sequence[str]) -> Iterable[tuple[str, Sequence[Message]]]:
    """Stage 1 as conversations. Prompts come in turn here, not at random: it is their lengths that count."""
    return (
        (one.id, [Message("user", prompts[place % len(prompts)]), Message("assistant", one.text)])
        for place, one in sample.kept
    )


def pair_talks(pairs: Iterable[Pair], prompts: Sequence[str]) -> Iterable[Conversation]:
    """Stage 1 on real pictures as conversations, prompts as in `text_samples`."""
    for place, pair in enumerate(pairs):
        turns = [Message("user", prompts[place % len(prompts)]), Message("assistant", pair.text)]
        yield Conversation(id=pair.id, image=pair.id, messages=turns)


def images_summary(images: Iterable[Image], *, look: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Counts of a source of pictures, and the sorted hashes of its ids.

    Args:
        look: whether files are looked for. Bytes inside of shards and tables are there, unless they are empty.
    """
    hashes = array("Q")
    missing, names = 0, list[str]()
    for image in images:
        hashes.append(hash_id(image.id))
        if look and (absence(image.picture) if isinstance(image.picture, Path) else not image.picture.content):
            missing += 1
            if len(names) < _SHOWN:
                names.append(f"{image.id}: {image.picture}")
    ids = np.unique(np.frombuffer(hashes, dtype=np.uint64)) if hashes else np.empty(0, dtype=np.uint64)
    found = {"records": len(hashes), "repeated_ids": len(hashes) - len(ids)}
    return {**found, "missing": missing if look else None, "first_missing": names}, ids


class Pictured:
    """Passes conversations on and counts those with a picture, with a text in its place, and with one no source has.

    Args:
        known: kind ("text" or "image") and sorted hashes of the ids of each source; the first that has an id counts.
    """

    def __init__(self, known: Sequence[tuple[str, np.ndarray]]) -> None:
        self.known = list(known)
        self.counts = Counter[str]()
        self.first = list[str]()

    def __call__(self, talks: Iterable[Conversation]) -> Iterable[Conversation]:
        """The same conversations."""
        for talk in talks:
            if talk.image is not None:
                kind = self._kind(np.uint64(hash_id(talk.image)))
                self.counts[kind] += 1
                if kind == "unknown" and len(self.first) < _SHOWN:
                    self.first.append(f"{talk.id}: {talk.image}")
            yield talk

    def _kind(self, hashed: np.uint64) -> str:
        for kind, ids in self.known:
            place = int(np.searchsorted(ids, hashed))
            if place < len(ids) and ids[place] == hashed:
                return kind
        return "unknown"

    def summary(self) -> dict[str, Any]:
        """Counts; a picture that no source has is a picture too."""
        found = {"with_picture": self.counts["image"] + self.counts["unknown"], "with_text": self.counts["text"]}
        return {**found, "picture_unknown": self.counts["unknown"], "first_unknown": self.first}


def said(talk: Conversation) -> str:
    """What makes two conversations the same: their picture and all turns."""
    return "\n".join([talk.image or "", *(f"{message.role}: {message.content}" for message in talk.messages)])


def _hash(text: str) -> int:
    plain = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")
