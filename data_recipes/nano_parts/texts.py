"""Texts of stage 1, which are also the captions of pictures in stage 2 and in the evaluation.

Every text says first what there is, in the words of the caption that the evaluation measures; a ground may follow. An
LLM that has learned 'This is a penguin.' and 'These are two penguins against blue.' has had each name often, while the
embeddings that the names come from differ.
"""

from __future__ import annotations

import numpy as np

from .lexicon import Concept
from .scenes import Scene

GROUNDS = ("against {colour}", "before a wall of {colour}")


def caption(scene: Scene, ground: str = "") -> str:
    """What a picture shows, in one sentence; `ground` is one of GROUNDS, or nothing."""
    opening = "This is" if scene.counts[0] == 1 else "These are"
    words = [opening, scene.phrase, ground.format(colour=scene.colour)]
    return " ".join(filter(None, words)) + "."


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that speaks of a coloured ground every other time."""
    ground = GROUNDS[int(rng.integers(len(GROUNDS)))] if scene.colour != "white" and rng.random() < 0.5 else ""
    return caption(scene, ground)


def single(concept: Concept, colour: str = "white") -> Scene:
    """The scene of one glyph."""
    return Scene((concept,), (1,), colour)
