"""Samples of both training stages, before tokenization: a conversation and the row of at most one embedding.

Stage 1 reads aligned text embeddings as pseudo images, with the text itself as answer (ReVision v3, Sec. 5), or real
image-caption pairs as an upper bound. Stage 2 reads conversations about rows of image stores, or of text stores where
the picture is replaced by a text.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from revision import folders
from revision.data.lines import Lines
from revision.data.rows import Rows
from revision.embeddings import EmbeddingStore
from revision.files import write_whole
from revision.records import IMAGE_MARK, Conversation, Message, Pair

_T = TypeVar("_T")

_TEXTS_IN_MEMORY = 200_000  # a text store of up to so many rows is read at once, where its texts are not kept as lines
_BLOCK = 65536  # texts or records that are held at a time while all are read


@dataclass(frozen=True)
class Sample:
    """One record before tokenization: its conversation and the row of its embedding (None: text only; `rows.REJECTED`:
    of a picture that could not be embedded).

    The text of `name` is the record's id; it is asked for in errors only.
    """

    name: object
    messages: Sequence[Message]
    row: int | None


class Samples(Protocol):
    """A sequence of samples that may compute them one by one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


class TextSamples:
    """Stage 1: every row of a text store, asked by one of the prompts, answers with its own text.

    Args:
        store: text store; its sidecar holds the texts.
        prompts: user turns with one `<image>` each; which of them a row gets depends on (seed, row) alone.
        seed: of that choice.
        keep: path, named after the state of the store, at which its texts are kept as `Lines`, and written if they are
            not there yet. None: a large store is asked for each text, which unpacks a shard of it.

    Raises:
        ValueError: a store of images, or a prompt without exactly one mark.
    """

    def __init__(self, store: EmbeddingStore, prompts: Sequence[str], seed: int, keep: Path | None = None) -> None:
        if store.manifest.kind != "text":
            raise ValueError(f"stage 1 learns texts, but {store.path} holds images; set data.texts to a text source")
        self.store, self.seed, self.prompts = store, seed, _checked(prompts)
        self._texts: Sequence[str] | Lines | None = None
        if keep is not None:
            blocks = (slice(start, start + _BLOCK) for start in range(0, len(store), _BLOCK))
            texts = (text for block in blocks for text in store.payload(block))
            self._texts = Lines.found(keep) or Lines.written(keep, texts)
        elif len(store) <= _TEXTS_IN_MEMORY:
            self._texts = store.payload(slice(None))

    def fingerprint(self) -> str:
        """sha256 that stands for all messages, without reading them."""
        content = [self.store.fingerprint(), self.prompts, self.seed if len(self.prompts) > 1 else None]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int, /) -> Sample:
        text = self.store.payload(index)[0] if self._texts is None else self._texts[index]
        prompt = _drawn(self.prompts, self.seed, index)
        return Sample(_RowId(self.store, index), [Message("user", prompt), Message("assistant", text)], index)


@dataclass(frozen=True)
class _RowId:
    """The id of a row, read from the store when it is put into words."""

    store: EmbeddingStore
    row: int

    def __str__(self) -> str:
        return self.store.ids(self.row)[0]


class KeptSamples:
    """Samples of records in a mapped file; a list of them would take three times the bytes, in every process.

    Args:
        path: of the `Lines` [id, row or null, [[role, content], ...]], with `<path>-rows.npy` beside them.

    Raises:
        OSError: a file is not there.
        ValueError: they are not of one piece.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, Lines(path)
        self.rows = np.load(_rows_file(path), mmap_mode="r", allow_pickle=False)  # int64 [len(self)]; -1: none
        if self.rows.shape != (len(self._lines),):
            raise ValueError(f"{_rows_file(path)} does not fit the {len(self._lines)} lines beside it; delete both")

    @classmethod
    def at(cls, path: Path, samples: Iterable[Sample]) -> KeptSamples:
        """What is kept at a path, or else these samples, one by one, written there."""
        try:
            return cls(path)
        except (OSError, ValueError, EOFError):  # not there, or not copied whole
            pass
        rows = array("q")

        def values() -> Iterator[object]:
            """A line each."""
            for one in samples:
                rows.append(-1 if one.row is None else one.row)
                yield [str(one.name), one.row, [[turn.role, turn.content] for turn in one.messages]]

        Lines.written(path, values())
        with folders.writing(_rows_file(path), "give the same command again"):
            write_whole(_rows_file(path), lambda file: np.save(file, np.asarray(rows, np.int64), allow_pickle=False))
        return cls(path)

    def __reduce__(self) -> tuple[type[KeptSamples], tuple[Path]]:
        """Pickled for a data-loading process as a path: each process maps the files itself."""
        return KeptSamples, (self._path,)

    def fingerprint(self) -> str:
        """sha256 that stands for all ids, rows and messages."""
        return self._lines.sha256

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int, /) -> Sample:
        name, row, turns = self._lines[index]
        return Sample(name, [Message(role, content) for role, content in turns], row)


def _rows_file(path: Path) -> Path:
    return path.with_name(f"{path.name}-rows.npy")


def pair_samples(pairs: Iterable[Pair], rows: Rows, prompts: Sequence[str], seed: int) -> Iterator[Sample]:
    """Stage 1 with real pictures, the upper bound: each caption is the answer to its own picture's embedding.

    Raises:
        ValueError: a pair whose id no store knows, or a prompt without exactly one mark.
    """
    asked = _checked(prompts)
    place = 0
    for block in _blocks(pairs):
        for pair, row in zip(block, rows.find([pair.id for pair in block]).tolist(), strict=True):
            yield Sample(pair.id, [Message("user", _drawn(asked, seed, place)), Message("assistant", pair.text)], row)
            place += 1


def conversation_samples(conversations: Iterable[Conversation], rows: Rows) -> Iterator[Sample]:
    """Stage 2: conversations, each about one row of the stores or about none.

    Raises:
        ValueError: a conversation whose picture, or the text in its place, no store knows.
    """
    for block in _blocks(conversations):
        pictured = [talk.image for talk in block if talk.image is not None]
        found = iter(rows.find(pictured).tolist() if pictured else [])
        for talk in block:
            yield Sample(talk.id, talk.messages, None if talk.image is None else next(found))


def _blocks(records: Iterable[_T]) -> Iterator[list[_T]]:
    """Of one look-up of ids each."""
    remaining = iter(records)
    while block := list(islice(remaining, _BLOCK)):
        yield block


def _checked(prompts: Sequence[str]) -> list[str]:
    if not prompts or any(prompt.count(IMAGE_MARK) != 1 for prompt in prompts):
        raise ValueError(
            f"pretrain.prompts={list(prompts)} must be one or more user turns with exactly one {IMAGE_MARK} each"
        )
    return list(prompts)


def _drawn(prompts: Sequence[str], seed: int, place: int) -> str:
    return prompts[int(np.random.default_rng([seed, place]).integers(len(prompts)))] if len(prompts) > 1 else prompts[0]
