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
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import get_cosine_schedule_with_warmup

from revision.conversation import IGNORED
from revision.dataset import ConversationDataset
from revision.model import RevisionForConditionalGeneration
from revision.model.language_revision import gathered

MOST = 30_000  # samples, evenly spaced, and so many draws of each: enough for the few thousand weights of an output
DRAWS = 3  # of noise, for the closed form
COMMON = 0.1  # tokens in more than this share of the texts tell nothing about a text, unless most have no other
RIDGE = 1e-3  # of the mean variance of a feature
BATCH = 256  # texts a step of descent
RATE = 1e-3  # of AdamW, at its peak
WARMUP = 0.05  # share of the steps; a cosine follows
SHARPNESS = 10.0  # what a squared distance counts in the softmax, where that of a word to no word is about one
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
    texts = _content(dataset)
    if not texts:
        raise ValueError(
            "pretrain.start=regression: all texts have the same tokens, so there is nothing to tell them by; set "
            "pretrain.start=random"
        )
    projector: Any = model.projector
    table: Any = model.get_input_embeddings()
    named = None
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
        if steps:
            learner, words = _copied(projector, model.config), Words(table, texts, projector)
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


class _Blend:
    """Token lists to what the projector's last layer goes for, float32 [n, slots H]."""

    def __init__(self, table: Any, texts: dict[int, list[int]], projector: Any) -> None:
        self.table, self.slots = table, projector.slots
        self.scale, self.centre = 1.0, torch.zeros((), device=table.weight.device)
        if projector.norm is not None:
            seen = sorted({token for tokens in texts.values() for token in tokens})
            self.scale, self.centre = 1 / projector.output_std, self._embedded(seen).mean(dim=0)

    def __call__(self, texts: Sequence[list[int]]) -> torch.Tensor:
        runs = [run for tokens in texts for run in runs_of(tokens, self.slots)]
        lengths = torch.tensor([len(run) for run in runs], device=self.table.weight.device)
        embedded = self._embedded([token for run in runs for token in run])
        sums = embedded.new_zeros(len(runs), embedded.shape[1])
        sums.index_add_(0, torch.arange(len(runs), device=lengths.device).repeat_interleave(lengths), embedded)
        means = sums / lengths[:, None]
        return ((means - self.centre) * self.scale).view(len(texts), -1)

    def _embedded(self, tokens: list[int]) -> torch.Tensor:
        embedded: torch.Tensor = self.table(torch.tensor(tokens, device=self.table.weight.device))
        return embedded.float()


class Words:
    """What visual tokens are told apart by: the embeddings of the tokens that the texts have.

    Args:
        table: the LLM's token embeddings.
        texts: tokens by the number of the sample.
        projector: that the visual tokens come from; where it ends in a norm, words are centred, as in `_Blend`.

    Attributes:
        places: int64 [V], which word a token of the table is; -1 for one that no text has.
    """

    def __init__(self, table: Any, texts: dict[int, list[int]], projector: Any) -> None:
        weight = table.weight
        seen = torch.tensor(sorted({token for tokens in texts.values() for token in tokens}), device=weight.device)
        self.places = torch.full((len(weight),), -1, device=weight.device).index_put_(
            (seen,), torch.arange(len(seen)).to(weight.device)
        )
        words = table(seen).detach().float()
        centred = words - words.mean(dim=0)
        self._unit = float(centred.square().mean().sqrt()) if projector.norm is None else projector.output_std
        self._words = (words if projector.norm is None else centred) / self._unit

    def compare(self, visual: torch.Tensor, texts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens [n, slots, H] beside the words of their texts.

        A word w is as likely as exp(-10 d^2), with d^2 the mean squared difference of coordinates in units of the
        words' spread. A visual token is to find each word of its run alike.

        Returns:
            Cross-entropy, and the share of visual tokens to which a word of their run is the nearest.
        """
        slots, width = visual.shape[1:]
        runs = [run for tokens in texts for run in runs_of(tokens, slots)]
        lengths = torch.tensor([len(run) for run in runs], device=self.places.device)
        owners = torch.arange(len(runs), device=self.places.device).repeat_interleave(lengths)
        wanted = self.places[torch.tensor([token for run in runs for token in run], device=self.places.device)]
        made = visual.reshape(-1, width) / self._unit
        # The square of the visual token is the same for all words, and drops out.
        nearness = (2 * made @ self._words.T - self._words.square().sum(dim=1)) / width
        likelihood = (SHARPNESS * nearness).log_softmax(dim=1)
        loss = -(likelihood[owners, wanted] / lengths[owners]).sum() / len(runs)
        hits = torch.zeros(len(runs), device=made.device).index_add_(
            0, owners, (nearness.argmax(dim=1)[owners] == wanted).float()
        )
        return loss, (hits > 0).float().mean()


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
