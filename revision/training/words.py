"""The words of the texts of stage 1 as the LLM embeds them: what a visual token ought to begin as."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from revision.data.conversation import IGNORED
from revision.data.dataset import ConversationDataset

MOST = 30_000  # samples, evenly spaced: with three draws of noise each enough for the few thousand weights of an output
COMMON = 0.1  # tokens in more than this share of the texts tell nothing about a text, unless most have no other
SHARPNESS = 10.0  # what a squared distance counts in the softmax, where that of a word to no word is about one


def content_of(dataset: ConversationDataset) -> dict[int, list[int]]:
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


class Words:
    """The tokens that tell the texts apart, by their embeddings.

    Args:
        table: the LLM's token embeddings.
        texts: tokens by the number of the sample.
        projector: that the visual tokens come from. Where it ends in a norm, words are centred and in units of its
            output: the norm would keep little beside a part that all of them share.

    Attributes:
        places: int64 [V], which word a token of the table is; -1 for one that no text has.
    """

    def __init__(self, table: Any, texts: dict[int, list[int]], projector: Any) -> None:
        device = table.weight.device
        seen = torch.tensor(sorted({token for tokens in texts.values() for token in tokens}), device=device)
        self.slots = projector.slots
        self.places = torch.full((len(table.weight),), -1, device=device)
        self.places[seen] = torch.arange(len(seen), device=device)
        own = table(seen).detach().float()
        centred = own - own.mean(dim=0)
        bare = projector.norm is None
        self._vectors = own if bare else centred / projector.output_std
        self._unit = float(centred.square().mean().sqrt()) if bare else 1.0  # spread of a coordinate
        self._scale = 1.0 if bare else projector.output_std

    def blends(self, texts: Sequence[list[int]]) -> torch.Tensor:
        """What the projector's last layer goes for: the mean word of each run, float32 [n, slots H]."""
        wanted, owners, lengths = self._runs(texts)
        sums = self._vectors.new_zeros(len(lengths), self._vectors.shape[1])
        sums.index_add_(0, owners, self._vectors[wanted])
        return (sums / lengths[:, None]).view(len(texts), -1)

    def compare(self, visual: torch.Tensor, texts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens [n, slots, H] beside the words of their texts.

        A word is as likely as exp(-10 d^2), with d^2 the mean squared difference of coordinates in units of the words'
        spread. A visual token is to find each word of its run alike.

        Returns:
            Cross-entropy, and the share of visual tokens to which a word of their run is the nearest.
        """
        wanted, owners, lengths = self._runs(texts)
        width = visual.shape[-1]
        made, vectors = visual.reshape(-1, width) / (self._scale * self._unit), self._vectors / self._unit
        # The square of the visual token is the same for all words, and drops out.
        nearness = (2 * made @ vectors.T - vectors.square().sum(dim=1)) / width
        likelihood = (SHARPNESS * nearness).log_softmax(dim=1)
        loss = -(likelihood[owners, wanted] / lengths[owners]).sum() / len(lengths)
        right = (nearness.argmax(dim=1)[owners] == wanted).float()
        hits = right.new_zeros(len(lengths)).index_add_(0, owners, right)
        return loss, (hits > 0).float().mean()

    def _runs(self, texts: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Words of all runs in a row, the run that each belongs to, and how many each run has; int64."""
        runs = [run for tokens in texts for run in runs_of(tokens, self.slots)]
        device = self.places.device
        lengths = torch.tensor([len(run) for run in runs], device=device)
        owners = torch.arange(len(runs), device=device).repeat_interleave(lengths)
        return self.places[torch.tensor([token for run in runs for token in run], device=device)], owners, lengths


def runs_of(tokens: list[int], count: int) -> list[list[int]]:
    """A list of at least one cut into so many neighbouring runs of about one length; one too short is stretched."""
    if len(tokens) < count:
        return [[tokens[place * len(tokens) // count]] for place in range(count)]
    ends = [place * len(tokens) // count for place in range(count + 1)]
    return [tokens[start:end] for start, end in pairwise(ends)]
