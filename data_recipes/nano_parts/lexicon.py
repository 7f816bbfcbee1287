"""The concepts of the `nano` corpus, their families, and the split that the protocol rests on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Families that no training of any kind meets, in picture or text: the harder track of the evaluation.
UNSEEN_FAMILIES = frozenset(
    {
        "birds",
        "medical",
        "music",
        "musical instruments",
        "reptiles",
        "science equipment",
        "sports",
        "sweets & candy",
        "vegetables",
        "water transportation",
    }
)

# Groups whose members are things that a drawing shows plainly; faces, gestures and signs train but are not scored.
CATEGORIES = {
    "animals & nature": "animal or plant",
    "food & drink": "food or drink",
    "travel & places": "place or vehicle",
    "activities": "game or festivity",
    "objects": "object",
}


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn and named.

    Attributes:
        code: Unicode code points, hexadecimal, joined by hyphens.
        name: English CLDR short name.
        group, family: CLDR group and subgroup.
        tags: CLDR keywords.
    """

    code: str
    name: str
    group: str
    family: str
    tags: tuple[str, ...]

    @property
    def character(self) -> str:
        """The emoji itself."""
        return "".join(chr(int(point, 16)) for point in self.code.split("-"))

    @property
    def unseen(self) -> bool:
        """Whether its family is held out of every training."""
        return self.family in UNSEEN_FAMILIES

    @property
    def category(self) -> str | None:
        """Answer to 'what kind of thing is it?', None where it is no thing."""
        return CATEGORIES.get(self.group)

    @cached_property
    def part(self) -> str:
        """Which part of the protocol its OpenMoji drawing belongs to: training, validation or test.

        Decided by a hash of the code points, so that it survives a change of the lexicon. Concepts that are no things
        are for training; of the things known to the encoder 45 % are, 15 % validate and 40 % test; of the unseen
        families a third validates and the rest tests.
        """
        share = int.from_bytes(hashlib.sha256(self.code.encode()).digest()[:4], "big") / 2**32
        if self.category is None:
            return "training"
        if self.unseen:
            return "validation" if share < 1 / 3 else "test"
        return "training" if share < 0.45 else "validation" if share < 0.6 else "test"

    @property
    def noun(self) -> str:
        """The name as it stands inside a sentence, with its indefinite article where it takes one."""
        if (self.name.endswith("s") and not self.name.endswith(("ss", "us"))) or self.name in UNCOUNTED:
            return self.name
        return f"{article(self.name)} {self.name}"

    @property
    def countable(self) -> bool:
        """Whether 'three <plural>' is English."""
        return self.category is not None and self.noun != self.name

    @property
    def plural(self) -> str:
        """Plural of a countable name."""
        head = IRREGULAR.get(self.name.split()[-1])
        if head:
            return " ".join([*self.name.split()[:-1], head])
        if re.search(r"(s|x|z|ch|sh)$", self.name):
            return f"{self.name}es"
        return f"{self.name[:-1]}ies" if re.search(r"[^aeiou]y$", self.name) else f"{self.name}s"


def article(words: str) -> str:
    """The indefinite article in front of some words, by their sound."""
    vowel = words[0].lower() in "aeiou" and not re.match(r"(?i)(uni|eu|ewe|one|ukulele)", words)
    return "an" if vowel or words.startswith(("hour", "x-ray")) else "a"


# Names that take no article: masses, sports, proper names, and the few that are no nouns.
UNCOUNTED = frozenset(
    [
        *("bread", "cheese", "broccoli", "garlic", "ginger", "rice", "spaghetti", "sushi", "sake", "money", "coral"),
        *("wood", "honey", "salt", "beans", "dna", "fog", "wind", "fish", "yarn", "thread", "tofu", "bacon", "butter"),
        *("popcorn", "soap", "luggage", "cooked rice", "curry rice", "canned food", "shaved ice", "ice"),
        *("oden", "mate", "pouring liquid", "cooking", "camping", "foggy", "construction", "building construction"),
        *("mount fuji", "high voltage", "tennis", "bowling", "field hockey", "ice hockey", "lacrosse", "ping pong"),
        *("badminton", "locked", "unlocked", "locked with pen", "locked with key", "rolling on the floor laughing"),
        *("potable water", "non-potable water", "breast-feeding", "horse racing", "no entry", "no smoking"),
        *("no littering", "no one under eighteen", "passport control", "baggage claim", "dashing away", "thumbs up"),
        *("thumbs down", "people hugging", "people wrestling", "children crossing", "Santa Claus", "Mrs. Claus"),
        *("Mx Claus", "infinity", "currency exchange", "vibration mode", "left luggage", "busts in silhouette"),
    ]
)
IRREGULAR = {
    "bison": "bison",
    "deer": "deer",
    "fish": "fish",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "mouse": "mice",
    "ox": "oxen",
    "sheep": "sheep",
    "wolf": "wolves",
}


def read_lexicon() -> list[Concept]:
    """All 1,427 concepts in the order of Unicode."""
    rows = json.loads(Path(__file__).with_name("lexicon.json").read_text())
    return [Concept(row["code"], row["name"], row["group"], row["family"], tuple(row["tags"])) for row in rows]


def part(concepts: Sequence[Concept], name: str) -> list[Concept]:
    """The concepts whose OpenMoji drawing belongs to that part of the protocol."""
    return [concept for concept in concepts if concept.part == name]
