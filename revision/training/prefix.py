"""Prefix sharing: what all samples of a batch begin with passes through the LLM once, not once a sample.

Most chat templates open every conversation with the same system message: 24 of SmolLM 2's, where a caption of nano has
17 with its picture. Loss and gradients are those of whole sequences, since no token of it sees what comes later.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from revision.data.conversation import IGNORED, UnfitError, common_prefix
from revision.data.dataset import ConversationDataset
from revision.data.packing import PackedDataset
from revision.model import RevisionForConditionalGeneration

_LOOKED_AT = 64  # samples, spread over the data set; each batch is held against what they begin with
_LEAST = 128  # tokens that a batch has to be spared: for fewer, another pass over the LLM's weights costs more
_DROPOUT = ("p", "dropout", "attention_dropout", "activation_dropout", "hidden_dropout")  # of modules of transformers
_KEPT_AS_KEYS = {"full_attention", "sliding_attention"}  # layers that know of earlier tokens by keys and values alone


class SharedPrefix:
    """Takes tokens off the rows of batches that begin with them; the model's forward pass puts them in front again."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = torch.tensor(tokens)

    def cut(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch that goes into the model: the same one, where a row begins otherwise or little would be spared."""
        ids, length = batch["input_ids"], len(self.tokens)
        if (len(ids) - 1) * length < _LEAST or ids.shape[1] <= length:
            return batch
        if not bool((ids[:, :length].cpu() == self.tokens).all()):
            return batch
        rest = {name: batch[name][:, length:] for name in ("input_ids", "labels")}
        return {**batch, **rest, "prefix_ids": self.tokens}


def shared_prefix(
    model: RevisionForConditionalGeneration,
    dataset: ConversationDataset | PackedDataset,
    arguments: TrainingArguments,
) -> SharedPrefix | None:
    """The prefix of a stage, or None where there is none to be shared.

    Packed rows hold many beginnings; checkpointed gradients would add to the keys and values twice; processes that
    share out the LLM have to call it equally often; and dropout draws for each sample.
    """
    if isinstance(dataset, PackedDataset):
        return None
    if arguments.deepspeed or arguments.fsdp or arguments.gradient_checkpointing or arguments.torch_compile:
        return None
    if _has_dropout(model) or not _attends_plainly(model.language_model):
        return None
    tokens = common_prefix(_beginnings(dataset), model.config.image_token_id)
    return SharedPrefix(tokens) if tokens else None


def _beginnings(dataset: ConversationDataset) -> list[list[int]]:
    """Samples up to what predicts their first label."""
    places = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).astype(int))
    found = []
    for place in places.tolist():
        with suppress(UnfitError):  # which training itself will meet, and name
            encoded, _ = dataset.fit(dataset.sample(place))
            found.append(encoded.input_ids[: np.argmax(encoded.labels != IGNORED)].tolist())
    return found


def _has_dropout(model: nn.Module) -> bool:
    rates = [getattr(module, name, 0.0) for module in model.modules() for name in _DROPOUT]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _attends_plainly(llm: Any) -> bool:
    kinds = getattr(llm.config, "layer_types", None) or []
    plain = not getattr(llm, "_is_stateful", False) and set(kinds) <= _KEPT_AS_KEYS
    return plain and llm.config._attn_implementation in ("eager", "sdpa")
