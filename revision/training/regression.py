"""A projector that begins as a reader: its last layer solved for, in closed form, before the first step.

A fresh projector says nothing that the LLM understands, and most of a short stage 1 goes into finding its language. Yet
what a visual token ought to begin as is known: a blend of the LLM's own embeddings of the words of the text. With the
layers before the last as they were drawn, the last one is a ridge regression from the texts' embeddings, as the stage
reads them (aligned, with noise), to these blends. It needs what stage 1 has anyway, and no picture. Ours; the paper
begins at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from revision.conversation import IGNORED
from revision.dataset import ConversationDataset
from revision.model import RevisionForConditionalGeneration
from revision.model.language_revision import gathered

MOST = 30_000  # samples, evenly spaced, and so many draws of each: enough for the few thousand weights of an output
DRAWS = 3
COMMON = 0.1  # tokens in more than this share of the texts tell nothing about a text, unless most have no other
RIDGE = 1e-3  # of the mean variance of a feature
_CHUNK = 2048
_EPOCH = 2**20  # of the noise, beyond those that are trained


@torch.no_grad()
def begin_by_regression(model: RevisionForConditionalGeneration, dataset: ConversationDataset) -> float:
    """Sets the projector's last layer.

    With content tokens t_1 ... t_n of a text (those that few texts have) cut into K runs, visual token k goes for the
    mean of the LLM's input embeddings of run k, less their mean over the vocabulary that occurs. Where the projector
    ends in a norm the common part of all outputs is left out, since the norm would keep little else.

    Args:
        model: with a fresh projector; changed in place. Every process must call this.
        dataset: of stage 1.

    Returns:
        Share of the targets' variance that the regression explains.

    Raises:
        ValueError: no text has a token that another lacks.
    """
    texts = _content(dataset)
    if not texts:
        raise ValueError(
            "pretrain.start=regression: all texts have the same tokens, so there is nothing to tell them by; set "
            "pretrain.start=random"
        )
    projector: Any = model.projector
    table: Any = model.get_input_embeddings()
    with gathered([*projector.parameters(), table.weight]):
        blend = _Blend(table, texts, projector)
        features, last = projector.layers[:-1], projector.layers[-1]
        sums = _Sums()
        for embeds, tokens in _read(dataset, texts):
            sums.add(features(embeds.to(last.weight) * projector.input_scale), blend(tokens))
        weight, explained = sums.solve()
        common = sums.mean_target if projector.norm is None else torch.zeros_like(sums.mean_target)
        last.weight.copy_(weight.T)
        last.bias.copy_(common - sums.mean_feature @ weight)
    return explained


def _content(dataset: ConversationDataset) -> dict[int, list[int]]:
    """Tokens that few texts have, in their order, by the number of the sample."""
    places = np.unique(np.linspace(0, len(dataset) - 1, min(MOST, len(dataset))).round().astype(int)).tolist()
    learned = {}
    for place in places:
        sample = dataset.sample(place)
        if sample.row is not None:
            labels = dataset.fit(sample)[0].labels
            learned[place] = labels[labels != IGNORED].tolist()
    met = Counter(token for tokens in learned.values() for token in set(tokens))
    found: dict[int, list[int]] = {}
    for most in (COMMON * len(learned), len(learned) - 1):  # where texts are few or much alike, all that differs counts
        rare = {place: [token for token in tokens if met[token] <= most] for place, tokens in learned.items()}
        found = {place: tokens for place, tokens in rare.items() if tokens}
        if 2 * len(found) > len(learned):
            break
    return found


def _read(
    dataset: ConversationDataset, texts: dict[int, list[int]]
) -> Iterator[tuple[torch.Tensor, Sequence[list[int]]]]:
    """Embeddings float32 [n, d] as an epoch of training reads them, with the tokens of their texts."""
    places = list(texts)
    for draw in range(DRAWS):
        dataset.set_epoch(_EPOCH + draw)
        for start in range(0, len(places), _CHUNK):
            some = places[start : start + _CHUNK]
            rows = [dataset.sample(place).row for place in some]
            yield torch.stack([dataset.rows[row] for row in rows if row is not None]), [texts[place] for place in some]
    dataset.set_epoch(0)


class _Blend:
    """Token lists to what the projector's last layer goes for, float32 [n, K H]."""

    def __init__(self, table: Any, texts: dict[int, list[int]], projector: Any) -> None:
        self.table, self.slots = table, projector.slots
        self.scale, self.centre = 1.0, torch.zeros(())
        if projector.norm is not None:
            seen = sorted({token for tokens in texts.values() for token in tokens})
            self.scale, self.centre = 1 / projector.output_std, self._embedded(seen).mean(dim=0)

    def __call__(self, texts: Sequence[list[int]]) -> torch.Tensor:
        return torch.stack([torch.cat([self._of(run) for run in runs_of(tokens, self.slots)]) for tokens in texts])

    def _of(self, run: list[int]) -> torch.Tensor:
        return (self._embedded(run).mean(dim=0) - self.centre) * self.scale

    def _embedded(self, tokens: list[int]) -> torch.Tensor:
        embedded: torch.Tensor = self.table(torch.tensor(tokens, device=self.table.weight.device))
        return embedded.float()


def runs_of(tokens: list[int], count: int) -> list[list[int]]:
    """A list of at least one cut into so many neighbouring runs of about one length; one too short is stretched."""
    if len(tokens) < count:
        return [[tokens[place * len(tokens) // count]] for place in range(count)]
    ends = [place * len(tokens) // count for place in range(count + 1)]
    return [tokens[start:end] for start, end in pairwise(ends)]


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
