"""Benchmark files: test pictures with their names and captions, and questions about them, by track.

Both are records files (`revision.records.read_rows`). A picture's `id` and a question's `image` name rows of the store
of benchmark pictures. `track` keeps what the dual encoder may know apart from what it cannot (known, unseen), `split`
keeps pictures for choices apart from pictures for reports (validation, test).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from revision.records import read_rows


@dataclass(frozen=True)
class Picture:
    """A picture to be named and described. `path` is the picture file."""

    id: str
    path: Path
    name: str
    caption: str
    track: str


@dataclass(frozen=True)
class Question:
    """A question about picture `image`.

    choices: where given, the answer and its rivals; texts: what each of them stands for, where they are letters.
    also: further answers that are as right.
    groups: sets that the question is one of, name of the kind of set to name of the set. Of each kind, the share of
        sets in which all answers are right is counted too, as MME and HallusionBench do.
    """

    id: str
    image: str
    question: str
    answer: str
    kind: str
    track: str
    choices: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)


Item = TypeVar("Item", Picture, Question)


def read_pictures(
    path: Path, *, split: str, image_root: Path | None = None, limit: int | None = None, seed: int = 0
) -> dict[str, list[Picture]]:
    """Pictures of one split by track, in the order of the file; with `limit`, a seeded draw of that many a track.

    image_root: folder that relative picture paths start from; None: the folder of the benchmark file.
    Raises ValueError for a missing or malformed field, a duplicate id, or a split without rows.
    """
    root = path.parent if image_root is None else image_root

    def picture(row: dict[str, Any], where: str) -> Picture:
        """One record; `where` is its file and line, for errors."""
        text = {name: _string(row, name, where) for name in ("image", "name", "caption", "track")}
        return Picture(
            id=_identity(row, where),
            path=root / text["image"],
            name=text["name"],
            caption=text["caption"],
            track=text["track"],
        )

    return _by_track(path, picture, split=split, limit=limit, seed=seed)


def read_questions(path: Path, *, split: str, limit: int | None = None, seed: int = 0) -> dict[str, list[Question]]:
    """Questions of one split by track; order, `limit` and errors as in `read_pictures`.

    Raises ValueError also where the answer is not among the choices, or `texts` are not as many.
    """

    def question(row: dict[str, Any], where: str) -> Question:
        """One record; `where` is its file and line, for errors."""
        text = {name: _string(row, name, where) for name in ("image", "question", "answer", "kind", "track")}
        choices, texts, also = (_strings(row, name, where) for name in ("choices", "texts", "also"))
        if choices and text["answer"] not in choices:
            raise ValueError(
                f"{where}: the answer {text['answer']!r} is not among the choices {[*choices]}; add it there"
            )
        if texts and len(texts) != len(choices):
            raise ValueError(f"{where}: {len(texts)} texts for {len(choices)} choices; give each choice its own")
        return Question(
            id=_identity(row, where), choices=choices, texts=texts, also=also, groups=_groups(row, where), **text
        )

    return _by_track(path, question, split=split, limit=limit, seed=seed)


def _by_track(
    path: Path, read: Callable[[dict[str, Any], str], Item], *, split: str, limit: int | None, seed: int
) -> dict[str, list[Item]]:
    tracks: dict[str, list[Item]] = {}
    splits: set[str] = set()
    seen: set[str] = set()
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}, row {number}"
        splits.add(_string(row, "split", where))
        if row["split"] != split:
            continue
        item = read(row, where)
        if item.id in seen:
            raise ValueError(f"{where}: the id {item.id!r} occurs twice in split {split}; give every row its own id")
        seen.add(item.id)
        tracks.setdefault(item.track, []).append(item)
    if not tracks:
        raise ValueError(
            f"{path} has no row of split {split!r}, only of {sorted(splits)}; set evaluate.split to one of them"
        )
    return {track: _draw(items, limit, seed) for track, items in tracks.items()}


def _draw(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    if limit is None or limit >= len(items):
        return items
    kept = np.sort(np.random.default_rng(seed).permutation(len(items))[:limit])
    return [items[index] for index in kept]


def _string(row: dict[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise ValueError(f"{where} has no field {name!r}; a benchmark row needs it (see docs/formats.md)")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a text that is not empty")
    return value


def _strings(row: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A list of texts that may be absent. They are all different: of two alike, neither could be told to be chosen."""
    found = row.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found):
        raise ValueError(f"{where}: field {name!r} is {found!r}; it must be a list of texts that are not empty")
    if name == "choices" and len(set(found)) < len(found):
        raise ValueError(f"{where}: of the choices {found} two are alike; give each once")
    return tuple(found)


def _groups(row: dict[str, Any], where: str) -> dict[str, str]:
    found = row.get("groups") or {}
    if not isinstance(found, dict) or not all(isinstance(one, str) for pair in found.items() for one in pair):
        raise ValueError(f"{where}: field 'groups' is {found!r}; it must be names of sets by the kind of set")
    return found


def _identity(row: dict[str, Any], where: str) -> str:
    return str(row["id"]) if isinstance(row.get("id"), int) else _string(row, "id", where)
