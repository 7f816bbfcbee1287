"""What a picture shows: one glyph or several, how many of each, on which ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .lexicon import Concept

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Scene:
    """Up to two concepts, how many of each, and the colour of the background; a single glyph is one concept, once."""

    concepts: tuple[Concept, ...]
    counts: tuple[int, ...]
    colour: str

    @property
    def phrase(self) -> str:
        """'two penguins and a guitar'."""
        parts = [
            c.noun if n == 1 else f"{NUMBERS[n]} {c.plural}" for c, n in zip(self.concepts, self.counts, strict=True)
        ]
        return " and ".join(parts)


def random_scene(concepts: Sequence[Concept], rng: np.random.Generator, colour: str) -> Scene:
    """One countable concept several times, or two concepts once or twice each; at most four glyphs."""
    first, second = (concepts[int(i)] for i in rng.choice(len(concepts), 2, replace=False))
    if rng.random() < 0.5:
        return Scene((first,), (int(rng.integers(2, 5)),), colour)
    return Scene((first, second), (int(rng.integers(1, 3)), int(rng.integers(1, 3))), colour)
