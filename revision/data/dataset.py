"""Examples of both training stages: a conversation and at most one embedding.

Stage 1 reads aligned text embeddings as pseudo images, with the text itself as answer (ReVision v3, Sec. 5), or real
image-caption pairs as an upper bound. Stage 2 reads conversations about rows of image stores, or of text stores where
the picture is replaced by a text. What a row becomes on its way to the model is the business of `rows`.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch.utils.data import Dataset

from revision.data.conversation import Encoded, UnfitError, encode
from revision.data.lines import Lines
from revision.data.rows import Rows
from revision.embeddings import EmbeddingStore
from revision.embeddings.layout import write_whole
from revision.model import RevisionProcessor
from revision.records import IMAGE_MARK, Conversation, Message, Pair

_T = TypeVar("_T")
Example = dict[str, Any]

_TEXTS_IN_MEMORY = 200_000  # a text store of up to so many rows is read at once, where its texts are not kept as lines
_BLOCK = 16384  # texts or records that are held at a time while all are read


@dataclass(frozen=True)
class Sample:
    """One record before tokenization: its conversation and the row of its embedding (None: text only).

    The text of `name` is the record's id; it is asked for in errors only.
    """

    name: object
    messages: Sequence[Message]
    row: int | None


class Samples(Protocol):
    """A sequence of samples that may compute them one by one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


class ConversationDataset(Dataset[Example]):
    """Samples as token ids, labels and an embedding, made when asked for.

    Args:
        samples: what to learn.
        rows: where the embeddings are.
        processor: made by `revision.data.conversation.build_processor`.
        max_length: tokens a sample may have, visual ones included; a longer one is an error.
        limit: use only the first so many of a seeded shuffle.
        seed: of that shuffle.
        cut_turns: a longer one loses whole turns at its end instead, as few as will do; an answer is never cut.
    """

    tokens: np.ndarray | None = None  # int32 [len(self)], tokens of each sample, once `keep` has been told

    def __init__(
        self,
        samples: Samples,
        rows: Rows,
        processor: RevisionProcessor,
        *,
        max_length: int,
        limit: int | None = None,
        seed: int = 0,
        cut_turns: bool = False,
    ) -> None:
        if len(samples) == 0:
            raise ValueError("there is no record to train on; look at data, and at the rejected records of its stores")
        self.samples, self.rows, self.processor, self.max_length = samples, rows, processor, max_length
        self.cut_turns = cut_turns
        self.chosen = None if limit is None else np.random.default_rng(seed).permutation(len(samples))[:limit]

    def __len__(self) -> int:
        return len(self.samples) if self.chosen is None else len(self.chosen)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.rows.set_epoch(epoch)

    def sample(self, index: int) -> Sample:
        """The record behind an example."""
        return self.samples[index if self.chosen is None else int(self.chosen[index])]

    def count_kinds(self) -> dict[str, int]:
        """Samples by what their embedding is of: "text", "image", or "none" for those without one."""
        if isinstance(self.samples, TextSamples):  # each a text; reading them all would cost a pass
            return {"text": len(self), "image": 0, "none": 0}
        if isinstance(self.samples, KeptSamples):
            known = self.samples.rows if self.chosen is None else self.samples.rows[self.chosen]
            found = Counter(self.rows.kind_of(int(row) if row >= 0 else None) for row in known)
        else:
            found = Counter(self.rows.kind_of(self.sample(index).row) for index in range(len(self)))
        return {kind: found[kind] for kind in ("text", "image", "none")}

    def names(self, index: int) -> list[str]:
        """Ids of the records behind an item: one."""
        return [str(self.sample(index).name)]

    def lengths(self) -> list[int]:
        """Tokens of each sample where they have been counted, else its characters: what grouping by length goes by.

        Characters cost a hundredth of what tokenizing does.
        """
        if self.tokens is not None:
            return [int(length) for length in self.tokens]
        return [sum(len(message.content) for message in self.sample(index).messages) for index in range(len(self))]

    def __getitem__(self, index: int) -> Example:
        """`input_ids` and `labels`, int64 [L], and `image_embed`, float32 [d] or None.

        Raises:
            ValueError: the record has no label, is too long, or has a mark where none may be; names its id.
        """
        sample = self.sample(index)
        encoded, _ = self.fit(sample)
        embed = None if sample.row is None else self.rows[sample.row]
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "image_embed": embed}

    def fit(self, sample: Sample) -> tuple[Encoded, int]:
        """Token ids and labels of a sample, and how many of its turns they hold: all, but for `cut_turns`.

        Raises:
            UnfitError: the record is too long or has no label, and no whole turns that fit; names its id.
            ValueError: it has a mark where none may be.
        """
        limits: dict[str, Any] = {"name": sample.name, "max_length": self.max_length}
        try:
            return encode(self.processor, sample.messages, **limits), len(sample.messages)
        except UnfitError:
            pictured = 0 if sample.row is None else 1
            answers = [end for end, turn in enumerate(sample.messages, 1) if turn.role == "assistant"][:-1]
            for end in reversed(answers if self.cut_turns else []):
                kept = sample.messages[:end]
                if sum(turn.content.count(IMAGE_MARK) for turn in kept) < pictured:
                    break  # without its picture it would be another sample
                try:
                    return encode(self.processor, kept, **limits), end
                except UnfitError:
                    continue
            raise

    def keep(self, tokens: np.ndarray) -> None:
        """Leaves samples out.

        Args:
            tokens: int32 [len(self)], tokens of each sample; 0 for one to leave out.

        Raises:
            ValueError: none is left.
        """
        kept = np.flatnonzero(tokens)
        if len(kept) == 0:
            raise ValueError("no record is left to train on; raise max_length, or look at the records")
        if len(kept) < len(tokens):
            self.chosen = kept if self.chosen is None else self.chosen[kept]
            tokens = tokens[kept]
        self.tokens = tokens


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
        ValueError: a pair whose id has no embedding, or a prompt without exactly one mark.
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
        ValueError: a conversation whose picture, or the text in its place, has no embedding.
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
