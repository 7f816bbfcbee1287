"""Examples to batches: padded to one length, or packed into one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from revision.data.conversation import IGNORED
from revision.data.dataset import Example

# One position without a label: it takes part in the step and teaches nothing.
_NOTHING: Example = {"input_ids": np.zeros(1, np.int64), "labels": np.full(1, IGNORED), "image_embed": None}


class Collator:
    """Examples to one batch, padded on the right to the longest of them."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask and labels, int64 [B, L]; with pictures also image_embeds, float32 [N, d].

        Pictures are in the order of their tokens. No example at all, the share of a process for which none was left
        at the end of an epoch, becomes one position without a label: it takes part in the step and teaches nothing.
        """
        if not examples:
            nothing = torch.full((1, 1), self.pad_token_id)
            return {"input_ids": nothing, "attention_mask": torch.ones_like(nothing), "labels": nothing * 0 + IGNORED}
        shape = (len(examples), max(len(example["input_ids"]) for example in examples))
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED),
        }
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            batch["input_ids"][row, :length] = torch.from_numpy(example["input_ids"])
            batch["attention_mask"][row, :length] = 1
            batch["labels"][row, :length] = torch.from_numpy(example["labels"])
        embeds = [example["image_embed"] for example in examples if example["image_embed"] is not None]
        if embeds:
            batch["image_embeds"] = torch.stack(embeds)
        return batch


class PackedCollator:
    """Packs to one row.

    Args:
        boundaries: also say where samples begin, in the words of transformers' FlashAttentionKwargs. Attention that
            works sample by sample needs them; dense masks are made from the positions.
    """

    def __init__(self, *, boundaries: bool = False) -> None:
        self.boundaries = boundaries

    def __call__(self, packs: Sequence[list[Example]]) -> dict[str, Any]:
        """Several packs become one row too, and none at all one position without a label.

        input_ids, position_ids and labels, int64 [1, T], and no attention_mask: with one, transformers would let
        samples see each other. With pictures also image_embeds, float32 [N, d], in the order of their tokens. With
        boundaries also cu_seq_lens_q and cu_seq_lens_k, int32 [samples + 1], and the ints max_length_q, max_length_k.
        """
        examples = [example for pack in packs for example in pack] or [_NOTHING]
        lengths = [len(example["input_ids"]) for example in examples]
        ids, labels = (np.concatenate([example[name] for example in examples]) for name in ("input_ids", "labels"))
        borders = np.cumsum([0, *lengths])
        labels[borders[:-1]] = IGNORED  # nothing before a sample predicts its first token
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids)[None],
            "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
            "labels": torch.from_numpy(labels)[None],
        }
        embeds = [example["image_embed"] for example in examples if example["image_embed"] is not None]
        if embeds:
            batch["image_embeds"] = torch.stack(embeds)
        if self.boundaries:
            starts = torch.from_numpy(borders.astype(np.int32))
            batch |= {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
            batch |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
        return batch
