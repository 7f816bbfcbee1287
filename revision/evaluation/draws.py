"""Seeded draws of an evaluation: the names each picture is ranked against, and the pictures its caption is tried under.

They depend on the benchmark and the evaluation's seed alone, so that every model meets the same test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NamingGroup:
    """Pictures that are ranked against the same candidate names.

    pictures: int64 [n], their places in the track. names: the candidates. right: int64 [n], each picture's own name
    among them.
    """

    pictures: np.ndarray
    names: list[str]
    right: np.ndarray


def naming_groups(names: Sequence[str], pool: Sequence[str], *, candidates: int, seed: int) -> list[NamingGroup]:
    """Divides the pictures of a track into groups with `candidates` names each.

    names: the right name of each picture. The distinct names are shuffled and cut into as few equal parts as keep every
    part within `candidates`; a part's pictures form a group, and its candidates are its own names, filled up with
    other names of the track, then with names of `pool`, drawn at random. So every picture is scored once, against
    exactly `candidates` names (all there are, if fewer), most of them right for another picture of the group.
    """
    random = np.random.default_rng(seed)
    distinct = sorted(set(names))
    shuffled = [distinct[i] for i in random.permutation(len(distinct))]
    strangers = sorted(set(pool) - set(distinct))
    groups = []
    for part in np.array_split(np.arange(len(shuffled)), -(-len(shuffled) // candidates)):
        own = [shuffled[i] for i in part]
        others = sorted(set(distinct) - set(own))
        fill = [others[i] for i in random.permutation(len(others))] + [
            strangers[i] for i in random.permutation(len(strangers))
        ]
        chosen = own + fill[: candidates - len(own)]
        place = {name: index for index, name in enumerate(own)}
        pictures = np.array([index for index, name in enumerate(names) if name in place], dtype=np.int64)
        right = np.array([place[names[index]] for index in pictures], dtype=np.int64)
        groups.append(NamingGroup(pictures=pictures, names=chosen, right=right))
    return groups


def other_pictures(names: Sequence[str], *, others: int, seed: int) -> np.ndarray:
    """For each picture, `others` different pictures of other names, at random.

    Returns int64 [n, others]; fewer columns where a name leaves fewer pictures. Raises ValueError when all pictures
    share one name: then no caption is wrong anywhere.
    """
    random = np.random.default_rng(seed)
    array = np.array(names)
    width = min(others, len(names) - max(Counter(names).values()))
    if width == 0:
        raise ValueError(
            f"all {len(names)} pictures of a track are named {names[0]!r}; the margin needs two: raise evaluate.limit"
        )
    # Found anew for each picture: kept, they would take memory with the square of the pictures.
    drawn = (random.choice(np.flatnonzero(array != name), size=width, replace=False) for name in names)
    return np.stack(list(drawn))
