"""Examples of both training stages: a conversation and at most one embedding.

Stage 1 reads aligned text embeddings as pseudo images, with the text itself as answer (ReVision v3, Sec. 5), or real
image-caption pairs as an upper bound. Stage 2 reads conversations about rows of image stores. Embeddings are read from
memory-mapped stores one row at a time, and the alignment is applied on the fly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from revision.alignment import Alignment
from revision.conversation import IGNORED, encode
from revision.embeddings import EmbeddingStore
from revision.records import Conversation, Message, Pair

Example = dict[str, Any]


class Rows:
    """Embeddings by row number across several stores of one encoder, in the order of the stores.

    Args:
        stores: at least one; all of one dimension and encoder.
        embed_dim: dimension that the model reads.
        alignment: applied to every row; None leaves images as they are.

    Raises:
        ValueError: another dimension, or stores of two encoders.
    """

    def __init__(self, stores: Sequence[EmbeddingStore], *, embed_dim: int, alignment: Alignment | None = None) -> None:
        self.stores = list(stores)
        self.alignment = alignment
        self.epoch = 0
        for store in self.stores:
            if store.dim != embed_dim:
                raise ValueError(
                    f"the store {store.path} has rows of dimension {store.dim}, but the model reads {embed_dim}; embed "
                    "with the encoder that the model was made for, or pretrain a projector for this one"
                )
            if store.manifest.encoder != self.stores[0].manifest.encoder:
                raise ValueError(
                    f"the stores {self.stores[0].path} and {store.path} come from two encoders; embed both with one"
                )
        self._starts = np.cumsum([0] + [len(store) for store in self.stores])

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Row numbers int64 [n] of ids, each in the first store that has it.

        Raises:
            ValueError: an id without an embedding.
        """
        if len(self.stores) == 1:
            return self.stores[0].index_of(ids)
        known = {one: start + row for store, start in self._backwards() for row, one in enumerate(store.ids())}
        missing = [one for one in ids if one not in known]
        if missing:
            names = ", ".join(str(store.path) for store in self.stores)
            raise ValueError(f"the id {missing[0]!r} has no embedding in {names}; embed its record, or leave it out")
        return np.array([known[one] for one in ids], dtype=np.int64)

    def _backwards(self) -> list[tuple[EmbeddingStore, int]]:
        return list(zip(self.stores, (int(start) for start in self._starts[:-1]), strict=True))[::-1]

    def __getitem__(self, row: int) -> torch.Tensor:
        """Float32 [d]; for sampled alignments the draw is a function of (seed, epoch, row)."""
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        vector = self.stores[which].rows(np.array([row - self._starts[which]])).astype(np.float32)
        if self.alignment is not None:
            vector = self.alignment.apply(vector, row_ids=np.array([row]), epoch=self.epoch)
        return torch.from_numpy(vector[0])


@dataclass(frozen=True)
class Sample:
    """One record before tokenization: its id, its conversation, its embedding's row (None: text only)."""

    id: str
    messages: tuple[Message, ...]
    row: int | None


class ConversationDataset(Dataset[Example]):
    """Samples to `input_ids`, `labels` and `image_embed`; tokenized when asked for.

    Args:
        samples: sequence of `Sample`, or an object that computes them one by one.
        rows: where embeddings come from.
        processor: `RevisionProcessor` with a template that marks answers.
        max_length: tokens a sample may have.
        limit: use only the first so many of a seeded shuffle.
        seed: of that shuffle.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        rows: Rows,
        processor: Any,
        *,
        max_length: int,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if len(samples) == 0:
            raise ValueError("there is no record to train on; check data and the rejected records of its stores")
        self.samples, self.rows, self.processor, self.max_length = samples, rows, processor, max_length
        self._chosen = None if limit is None else np.random.default_rng(seed).permutation(len(samples))[:limit]

    def __len__(self) -> int:
        return len(self.samples) if self._chosen is None else len(self._chosen)

    def set_epoch(self, epoch: int) -> None:
        """Epoch that fresh noise of a sampled alignment is drawn for."""
        self.rows.epoch = epoch

    def __getitem__(self, index: int) -> Example:
        sample = self.samples[index if self._chosen is None else int(self._chosen[index])]
        encoded = encode(self.processor, sample.messages, where=sample.id, max_length=self.max_length)
        vector = None if sample.row is None else self.rows[sample.row]
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "image_embed": vector}


class TextSamples(Sequence[Sample]):
    """Stage 1: every row of a text store, asked by one of the prompts, answers with its own text.

    Args:
        store: text store; its sidecar holds the texts.
        prompts: user turns; which one a row gets is a function of (seed, row).
        seed: of that choice.
    """

    def __init__(self, store: EmbeddingStore, prompts: Sequence[str], seed: int) -> None:
        self.texts, self.ids = store.payload(slice(None)), store.ids()
        self.prompts = _checked(prompts)
        self._choice = np.random.default_rng(seed).integers(len(self.prompts), size=len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        messages = (Message("user", self.prompts[self._choice[index]]), Message("assistant", self.texts[index]))
        return Sample(self.ids[index], messages, index)


def pair_samples(pairs: Sequence[Pair], rows: Rows, prompts: Sequence[str], seed: int) -> list[Sample]:
    """Stage 1 with real pictures, the upper bound: each caption is the answer to its picture's own embedding."""
    asked = _checked(prompts)
    choice = np.random.default_rng(seed).integers(len(asked), size=len(pairs))
    found = rows.find([pair.id for pair in pairs])
    return [
        Sample(pair.id, (Message("user", asked[number]), Message("assistant", pair.text)), int(row))
        for pair, number, row in zip(pairs, choice, found, strict=True)
    ]


def conversation_samples(conversations: Sequence[Conversation], rows: Rows) -> list[Sample]:
    """Stage 2: conversations, each about one row of the image stores or about none."""
    pictured = [talk.image for talk in conversations if talk.image is not None]
    found = iter(rows.find(pictured) if pictured else [])
    return [
        Sample(talk.id, tuple(talk.messages), None if talk.image is None else int(next(found)))
        for talk in conversations
    ]


def _checked(prompts: Sequence[str]) -> list[str]:
    wrong = [prompt for prompt in prompts if prompt.count("<image>") != 1]
    if wrong or not prompts:
        raise ValueError(f"pretrain.prompts={list(prompts)} must be one or more user turns with exactly one <image> each")
    return list(prompts)


class Collator:
    """Pads on the right to the longest sample; pictures go in one tensor, in the order of their tokens."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Examples to input_ids, attention_mask, labels int64 [B, L] and, with pictures, image_embeds float32 [N, d]."""
        longest = max(len(example["input_ids"]) for example in examples)
        shape = (len(examples), longest)
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, IGNORED),
        }
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            batch["input_ids"][row, :length] = torch.tensor(example["input_ids"])
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, :length] = torch.tensor(example["labels"])
        vectors = [example["image_embed"] for example in examples if example["image_embed"] is not None]
        if vectors:
            batch["image_embeds"] = torch.stack(vectors)
        return batch
