"""Texts: what the encoder learns from, what stage 1 reads, and what stage 2 asks.

The templates of the three are disjoint, so that no text of stage 1 is one that a head was trained on; `nano.py` asserts
it on the finished files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .lexicon import Concept

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}

ENCODER_TEMPLATES = (
    "{name}",
    "{noun}",
    "an emoji of {noun}",
    "a drawing of {noun}",
    "a picture showing {noun}",
    "{name}, {family}",
)

NAME_TEMPLATE = "{noun}"  # how the encoder is asked for a name when it names pictures by cosine
CAPTION = "This is {noun}."  # the caption whose likelihood the evaluation measures

STAGE_ONE_TEMPLATES = (
    CAPTION,
    "{name}.",
    "{name}: {tags}.",
    "{name} ({family})",
    "Here you see {noun}.",
    "We are looking at {noun}, drawn in a few lines.",
)
STAGE_ONE_COLOURED = (
    "{name} before a wall of {colour}.",
    "Here is {noun}, and all around it is {colour}.",
    "This is {noun} against {colour}.",
)


@dataclass(frozen=True)
class Scene:
    """What a picture of several glyphs shows: up to two concepts, how many of each, the background."""

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


def _keywords(concept: Concept, rng: np.random.Generator, most: int = 3) -> str:
    words = [tag for tag in concept.tags if tag != concept.name]
    if not words:
        return concept.family
    return ", ".join(words[int(i)] for i in rng.permutation(len(words))[:most])


def encoder_captions(concept: Concept, rng: np.random.Generator) -> list[str]:
    """Captions of a single glyph that heads are trained on: the templates, and the name with keywords thrice."""
    captions = [t.format(name=concept.name, noun=concept.noun, family=concept.family) for t in ENCODER_TEMPLATES]
    return captions + [f"{concept.name}, {_keywords(concept, rng)}" for _ in range(3)]


def encoder_scene_caption(scene: Scene) -> str:
    """Caption of a scene that heads are trained on."""
    return f"{scene.phrase} on a {scene.colour} background"


def stage_one_text(concept: Concept, template: str, rng: np.random.Generator, colour: str) -> str:
    """One text of stage 1 about a single concept."""
    text = template.format(
        name=concept.name, noun=concept.noun, family=concept.family, tags=_keywords(concept, rng), colour=colour
    )
    return text


def stage_one_scene(scene: Scene, rng: np.random.Generator) -> str:
    """One text of stage 1 about several things."""
    phrase, colour = scene.phrase, scene.colour
    forms = (
        f"This is {phrase}.",
        f"Here you see {phrase} against {colour}.",
        f"{phrase[0].upper()}{phrase[1:]} before a wall of {colour}.",
    )
    return forms[int(rng.integers(len(forms)))]


@dataclass(frozen=True)
class Question:
    """A question about a picture, its answer, its kind, and the answers to choose from where they are few."""

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()


def questions_about(
    scene: Scene, others: Sequence[Concept], rng: np.random.Generator, colours: Sequence[str]
) -> list[Question]:
    """Every kind of question that the picture admits: name, colour, count, presence, category.

    Args:
        scene: what the picture shows; a single glyph is a scene of one concept with count 1.
        others: concepts that a 'no' of the presence question may ask for.
        rng: draws wording and whether presence is true.
        colours: the background colours there are.
    """
    first = scene.concepts[0]
    asked = [Question("colour", "What color is the background?", scene.colour, tuple(colours))]
    if len(scene.concepts) == 1:
        asked.append(Question("name", "What is shown in the picture?", first.name))
        if first.category is not None:
            kinds = ("animal or plant", "food or drink", "place or vehicle", "game or festivity", "object")
            asked.append(Question("category", "What kind of thing is it?", first.category, kinds))
        if first.countable:
            ask = f"How many {first.plural} are there?"
            asked.append(Question("count", ask, NUMBERS[scene.counts[0]], tuple(NUMBERS.values())))
    else:
        asked.append(Question("name", "What is shown in the picture?", " and ".join(c.name for c in scene.concepts)))
    absent = [concept for concept in others if concept not in scene.concepts]
    present = bool(rng.random() < 0.5)
    sought = scene.concepts[int(rng.integers(len(scene.concepts)))] if present else absent[rng.integers(len(absent))]
    answer = "yes" if present else "no"
    asked.append(Question("presence", f"Is there {sought.noun} in the picture?", answer, ("yes", "no")))
    return asked
