"""A projector that begins as a reader: regressed onto the words of the texts before the LLM takes part.

A fresh projector says nothing that the LLM understands, and most of a short stage 1 goes into finding its language. Yet
what a visual token ought to begin as is known: a blend of the LLM's own embeddings of the words of the text. With the
layers before the last as they were drawn, the last one is a ridge regression from the texts' embeddings, as the stage
reads them (aligned, with noise), to these blends. From there all layers can learn to tell the words apart: each visual
token is to lie nearer to the words of its run than to any other, by a softmax over distances. That is a small part of
the cost of the same texts through the LLM. It needs what stage 1 has anyway, and no picture. Ours; the paper begins at
random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import get_cosine_schedule_with_warmup

from revision.data.dataset import ConversationDataset
from revision.model import RevisionForConditionalGeneration
from revision.model.language_revision import gathered
from revision.training.words import Words, content_of

DRAWS = 3  # of noise, for the closed form
RIDGE = 1e-3  # of the mean variance of a feature
BATCH = 256  # texts a step of descent
RATE = 1e-3  # of AdamW, at its peak
WARMUP = 0.05  # share of the steps; a cosine follows
_CHUNK = 2048
_EPOCH = 2**20  # of the noise, beyond those that are trained


@dataclass(frozen=True)
class Beginning:
    """How well a projector begins.

    explained: share of the targets' variance that the closed form explains.
    named: share of visual tokens to which a word of their own run is the nearest, after the last tenth of the steps of
        descent; None without such steps.
    """

    explained: float
    named: float | None


@torch.no_grad()
def begin_by_regression(
    model: RevisionForConditionalGeneration, dataset: ConversationDataset, *, steps: int = 0, seed: int = 0
) -> Beginning:
    """Sets the projector's last layer and, with `steps`, all of its layers.

    With content tokens t_1 ... t_n of a text (those that few texts have) cut into K runs, visual token k goes for the
    mean of the LLM's input embeddings of run k, less their mean over the vocabulary that occurs. Where the projector
    ends in a norm the common part of all outputs is left out, since the norm would keep little else.

    Args:
        model: with a fresh projector; changed in place. Every process must call this.
        dataset: of stage 1.
        steps: of descent after the closed form, of 256 texts each, their noise drawn anew in each pass over the texts.
        seed: of the order of the texts in these steps.

    Raises:
        ValueError: no text has a token that another lacks.
    """
    texts = content_of(dataset)
    if not texts:
        raise ValueError(
            "pretrain.start=regression: all texts have the same tokens, so there is nothing to tell them by; set "
            "pretrain.start=random"
        )
    projector: Any = model.projector
    table: Any = model.get_input_embeddings()
    named = None
    with gathered([*projector.parameters(), table.weight]):
        words = Words(table, texts, projector)
        features, last = projector.layers[:-1], projector.layers[-1]
        sums = _Sums()
        for embeds, tokens in _read(dataset, texts):
            sums.add(features(embeds.to(last.weight) * projector.input_scale), words.blends(tokens))
        weight, explained = sums.solve()
        common = sums.mean_target if projector.norm is None else torch.zeros_like(sums.mean_target)
        last.weight.copy_(weight.T)
        last.bias.copy_(common - sums.mean_feature @ weight)
        if steps:
            learner = _copied(projector, model.config).to(words.places.device)  # ZeRO-3 may have it elsewhere
            named = _descend(learner, _batches(dataset, texts, steps, seed), words, steps)
            for own, found in zip(projector.parameters(), learner.parameters(), strict=True):
                own.copy_(found)
    dataset.set_epoch(0)
    return Beginning(explained, named)


def _descend(
    projector: Any, batches: Iterator[tuple[torch.Tensor, Sequence[list[int]]]], words: Words, steps: int
) -> float:
    """Moves all layers; returns the share of visual tokens nearest to a word of their run, over the last steps."""
    optimizer = torch.optim.AdamW(projector.parameters(), lr=RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(WARMUP * steps), steps)
    named: list[torch.Tensor] = []
    for embeds, tokens in batches:
        with torch.enable_grad():
            visual = projector(embeds.to(words.places.device))[:, : projector.slots]
            loss, right = words.compare(visual, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        named.append(right)
    return float(torch.stack(named[-math.ceil(steps / 10) :]).mean())


def _copied(projector: Any, config: Any) -> Any:
    """A projector with the same weights in float32, which no engine has laid its hands on."""
    with torch.device("meta"):
        copied = type(projector)(config)
    weights = {name: parameter.detach().float().clone() for name, parameter in projector.named_parameters()}
    copied.load_state_dict(weights, assign=True)
    return copied.requires_grad_(True)


def _read(
    dataset: ConversationDataset, texts: dict[int, list[int]]
) -> Iterator[tuple[torch.Tensor, Sequence[list[int]]]]:
    """Embeddings float32 [n, d] as an epoch of training reads them, with the tokens of their texts."""
    rows, tokens = _rows(dataset, texts), list(texts.values())
    for draw in range(DRAWS):
        dataset.set_epoch(_EPOCH + draw)
        for start in range(0, len(rows), _CHUNK):
            yield dataset.rows.many(rows[start : start + _CHUNK]), tokens[start : start + _CHUNK]


def _batches(
    dataset: ConversationDataset, texts: dict[int, list[int]], steps: int, seed: int
) -> Iterator[tuple[torch.Tensor, Sequence[list[int]]]]:
    """As `_read`, in another order and under other noise in each pass, so many batches."""
    rows, tokens = _rows(dataset, texts), list(texts.values())
    a_pass = math.ceil(len(rows) / BATCH)
    for step in range(steps):
        turn, place = divmod(step, a_pass)
        if place == 0:
            dataset.set_epoch(_EPOCH + DRAWS + turn)
            order = np.random.default_rng([seed, turn]).permutation(len(rows))
        some = order[place * BATCH : (place + 1) * BATCH].tolist()
        yield dataset.rows.many([rows[one] for one in some]), [tokens[one] for one in some]


def _rows(dataset: ConversationDataset, texts: dict[int, list[int]]) -> list[int]:
    rows = (dataset.sample(place).row for place in texts)
    return [row for row in rows if row is not None]


class _Sums:
    """What a ridge regression needs of features [n, f] and targets [n, t] that pass by, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._parts: list[torch.Tensor] = []

    def add(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """Some rows of both."""
        h, t = features.double(), targets.to(features.device).double()
        parts = [h.sum(dim=0), t.sum(dim=0), h.T @ h, h.T @ t, t.square().sum(dim=0)]
        self._parts = [a + b for a, b in zip(self._parts, parts, strict=True)] if self._parts else parts
        self._count += len(h)

    @property
    def mean_feature(self) -> torch.Tensor:
        """Float32 [f]."""
        return (self._parts[0] / self._count).float()

    @property
    def mean_target(self) -> torch.Tensor:
        """Float32 [t]."""
        return (self._parts[1] / self._count).float()

    def solve(self) -> tuple[torch.Tensor, float]:
        """Weights float32 [f, t] for centred features and targets, and the share of the variance they explain."""
        h, t = (part / self._count for part in self._parts[:2])
        own, cross, squares = (part / self._count for part in self._parts[2:])
        own, cross = own - torch.outer(h, h), cross - torch.outer(h, t)
        total = float((squares - t.square()).sum())
        ridge = RIDGE * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype, device=own.device)
        weight = torch.linalg.solve(own + ridge, cross)
        left = total - 2 * float((weight * cross).sum()) + float((weight * (own @ weight)).sum())
        return weight.float(), 1 - left / total if total > 0 else 0.0
