"""Questions of stage 2 and of the evaluation, with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .lexicon import Concept
from .scenes import NUMBERS, Scene


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
    asked = [
        Question("name", "What is shown in the picture?", " and ".join(concept.noun for concept in scene.concepts)),
        Question("colour", "What color is the background?", scene.colour, tuple(colours)),
    ]
    if len(scene.concepts) == 1:
        if first.category is not None:
            kinds = ("animal or plant", "food or drink", "place or vehicle", "game or festivity", "object")
            asked.append(Question("category", "What kind of thing is it?", first.category, kinds))
        if first.countable:
            ask = f"How many {first.plural} are there?"
            asked.append(Question("count", ask, NUMBERS[scene.counts[0]], tuple(NUMBERS.values())))
    absent = [concept for concept in others if concept not in scene.concepts]
    present = bool(rng.random() < 0.5)
    sought = scene.concepts[int(rng.integers(len(scene.concepts)))] if present else absent[rng.integers(len(absent))]
    answer = "yes" if present else "no"
    asked.append(Question("presence", f"Is there {sought.noun} in the picture?", answer, ("yes", "no")))
    return asked
