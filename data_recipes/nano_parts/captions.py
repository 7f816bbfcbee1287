"""What the encoder's heads are trained on, and how the encoder is asked for a name.

No template here is one of stage 1 (texts.py): no text of stage 1 may be one that a head was trained on, and `nano.py`
asserts it on the finished files.
"""

from __future__ import annotations

import numpy as np

from .lexicon import Concept, article
from .scenes import Scene

TEMPLATES = (
    "{name}",
    "{noun}",
    "an emoji of {noun}",
    "a drawing of {noun}",
    "a picture showing {noun}",
    "{name}, {family}",
)

NAME_TEMPLATE = "{noun}"  # how the encoder is asked for a name when it names pictures by cosine


def captions_of(concept: Concept, rng: np.random.Generator, colour: str = "white") -> list[str]:
    """Captions of a single glyph: the templates, and the name with keywords thrice.

    On a ground that is not white every caption is there twice, the second time with the colour; a head that never heard
    of colours would learn to be blind to them.
    """
    captions = [t.format(name=concept.name, noun=concept.noun, family=concept.family) for t in TEMPLATES]
    captions += [f"{concept.name}, {_keywords(concept, rng)}" for _ in range(3)]
    return captions if colour == "white" else captions + [f"{caption} {_ground(colour)}" for caption in captions]


def caption_of_scene(scene: Scene) -> str:
    """Caption of a scene, its ground included."""
    return f"{scene.phrase} {_ground(scene.colour)}"


def _ground(colour: str) -> str:
    return f"on {article(colour)} {colour} background"


def _keywords(concept: Concept, rng: np.random.Generator, most: int = 3) -> str:
    words = [tag for tag in concept.tags if tag != concept.name]
    if not words:
        return concept.family
    return ", ".join(words[int(i)] for i in rng.permutation(len(words))[:most])
