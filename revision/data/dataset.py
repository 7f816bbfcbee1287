"""Examples of both training stages, as the model takes them: token ids, labels, and at most one embedding.

What becomes of a row on its way to the model is the business of `rows`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from revision.data.conversation import Encoded, UnfitError, encode, encode_what_fits
from revision.data.rows import REJECTED, Rows
from revision.data.samples import KeptSamples, Sample, Samples, TextSamples
from revision.model import RevisionProcessor

Example = dict[str, Any]


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
    counted: Path | None = None  # file that they are kept in

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

    def without_embedding(self) -> list[str]:
        """Ids of samples about something that was rejected when it was embedded."""
        if not isinstance(self.samples, KeptSamples):
            return []  # each row of a text store is one
        rows = np.asarray(self.samples.rows if self.chosen is None else self.samples.rows[self.chosen])
        return [str(self.sample(place).name) for place in np.flatnonzero(rows == REJECTED).tolist()]

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
            UnfitError: as `fit`.
        """
        sample = self.sample(index)
        encoded, _ = self.fit(sample)
        embed = None if sample.row is None else self.rows[sample.row]
        return {"input_ids": encoded.input_ids, "labels": encoded.labels, "image_embed": embed}

    def fit(self, sample: Sample) -> tuple[Encoded, int]:
        """Token ids and labels of a sample, and how many of its turns they hold: all, but for `cut_turns`.

        Raises:
            UnfitError: the record is too long, has no label, or no whole turns that fit, or a mark where none may be,
                or its picture was rejected when it was embedded; names its id.
        """
        if sample.row == REJECTED:
            raise UnfitError(f"sample {sample.name} has no embedding: its record is in the store's rejected.jsonl")
        limits: dict[str, Any] = {"name": sample.name, "max_length": self.max_length}
        if self.cut_turns:
            return encode_what_fits(self.processor, sample.messages, pictured=sample.row is not None, **limits)
        return encode(self.processor, sample.messages, **limits), len(sample.messages)

    def keep(self, tokens: np.ndarray, counted: Path | None = None) -> None:
        """Leaves samples out.

        Args:
            tokens: int32 [len(self)], tokens of each sample; 0 for one to leave out.
            counted: the file that they come from, where there is one.

        Raises:
            ValueError: none is left.
        """
        kept = np.flatnonzero(tokens)
        if len(kept) == 0:
            raise ValueError("no record is left to train on; raise max_length, or look at the records")
        if len(kept) < len(tokens):
            self.chosen = kept if self.chosen is None else self.chosen[kept]
            tokens = tokens[kept]
        self.tokens, self.counted = tokens, counted
