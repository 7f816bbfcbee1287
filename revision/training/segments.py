"""Attention of packed rows on a CPU: each sample by itself, as if it stood alone.

A dense mask over a row of T tokens costs T^2 there: at 2,048 tokens, SmolLM2-135M takes ten times as long as over the
same samples in a padded batch. Sample by sample the cost is that of the samples, and nothing is masked but the future.
On GPUs flash attention does the same in one kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

SEGMENTS = "revision_segments"  # the name by which transformers knows it


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample of one row, in the steps of transformers' eager attention.

    Args:
        query: [1, heads, T, D].
        key, value: [1, key heads, T, D].
        attention_mask: None.
        scaling: of the products; None: 1 / sqrt(D).
        dropout: of the weights.
        sliding_window: tokens back, itself included, that a token sees; None: all.
        softcap: bound of the scores; None: none.
        cu_seq_lens_q: int [samples + 1], where samples begin and the last one ends; None: one sample.

    Returns:
        [1, T, heads, D], and no weights.
    """
    assert attention_mask is None and len(query) == 1, "for packed rows"
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    sizes = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    outputs = []
    for q, k, v in zip(*(one.split(sizes, dim=2) for one in (query, key, value)), strict=True):
        scores = (q @ k.transpose(-1, -2)) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(_unseen(q.shape[2], sliding_window, scores.device), -torch.inf)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        outputs.append(nn.functional.dropout(weights, p=dropout, training=module.training) @ v)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _unseen(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Bool [L, L]: the keys (columns) that a query (row) does not see."""
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    return future if window is None else future | torch.ones_like(future).tril(-window)


AttentionInterface.register(SEGMENTS, segment_attention)
