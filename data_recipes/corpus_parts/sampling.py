"""Random choices from the files of a corpus: the records that `--keep` leaves, and the pictures of the statistics."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from corpus_parts.keeping import Row, write_whole

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}

log = logging.getLogger("recipe")


def draw(out: Path, wanted: int, seed: int) -> dict[str, int]:
    """Reduces texts, with their images and pairs, and conversations to a random choice; returns their new counts.

    What a kept conversation is about is kept too, be it a picture or a text in its place; other pictures go.
    """
    counts = {}
    talks, images, texts = (out / f"{name}.jsonl" for name in ("conversations", "images", "texts"))
    named: set[int] = set()
    if talks.is_file():
        counts["conversations"] = _reduce(talks, _drawn(talks, wanted, seed))
        named = {hash_of(str(row["image"])) for row in _lines(talks) if "image" in row}
        if images.is_file():
            counts["images"] = _reduce(images, [hash_of(row["id"]) in named for row in _lines(images)])
    if texts.is_file():
        drawn = _drawn(texts, wanted, seed)
        chosen = [kept or hash_of(row["id"]) in named for row, kept in zip(_lines(texts), drawn, strict=True)]
        stay = {hash_of(row["id"]) for row, kept in zip(_lines(texts), chosen, strict=True) if kept}
        for name in ("texts",) if talks.is_file() else ("texts", "images", "pairs"):
            file = out / f"{name}.jsonl"
            if file.is_file():  # a caption's picture and pair have its id; one without a picture has neither
                counts[name] = _reduce(file, [hash_of(row["id"]) in stay for row in _lines(file)])
    return counts


def _reduce(file: Path, chosen: list[bool]) -> int:
    return write_whole(file, (row for row, kept in zip(_lines(file), chosen, strict=True) if kept))


def _lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8") as opened:
        yield from map(json.loads, opened)


def _length(file: Path) -> int:
    with file.open(encoding="utf-8") as opened:
        return sum(1 for _ in opened)


def write_statistics(out: Path, wanted: int, seed: int) -> int:
    """Writes `statistics.jsonl`, a sample of images.jsonl or of the files below images/; returns its length."""
    listed = out / "images.jsonl"
    if listed.is_file():
        chosen = _choice(_length(listed), wanted, seed)
        with listed.open(encoding="utf-8") as file:
            kept = (json.loads(line) for line, is_kept in zip(file, chosen, strict=True) if is_kept)
            return write_whole(out / "statistics.jsonl", kept)
    folder = out / "images"
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not found:
        (out / "statistics.jsonl").unlink(missing_ok=True)
        log.warning(
            "%s holds no pictures: `align` needs some like those to come; put them there, run this again", folder
        )
        return 0
    names = (str(path.relative_to(folder)) for path, kept in zip(found, _choice(len(found), wanted, seed), strict=True)
             if kept)  # fmt: skip
    return write_whole(out / "statistics.jsonl", ({"id": name, "image": name} for name in names))


def _drawn(file: Path, wanted: int, seed: int) -> list[bool]:
    """Which records of a file are drawn; says so where there are fewer than wanted."""
    count = _length(file)
    if count < wanted:
        log.warning("%s has %s records, fewer than --keep %s: all are kept", file.stem, f"{count:,}", f"{wanted:,}")
    return _choice(count, wanted, seed)


def _choice(count: int, wanted: int, seed: int) -> list[bool]:
    kept = np.zeros(count, dtype=bool)
    kept[np.random.default_rng(seed).permutation(count)[:wanted]] = True
    return [bool(one) for one in kept]


def hash_of(identity: str) -> int:
    """Eight bytes that stand for an id, so that millions of them fit into memory."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")
