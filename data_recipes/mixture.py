"""A mixture of corpora that other recipes have made, by weights, the same for the same seed.

    python data_recipes/mixture.py --out data/mix --texts bunny=2 densefusion=1 --total 900000 \\
        --conversations llava-instruct=1 internvl-sft=3

Names are folders below --root, each with the finish mark of its recipe. Weights say how many rows come from each:
with --total, so many in all; without it, as many as there are until one part is used up. Which rows a part gives is
drawn at random, and so is their order among those of the others; within a part they keep theirs. `--repeat` lets a part
give rows more than once, under ids `...#1`, `...#2`.

Ids begin with the name of the part, so that none occurs twice. Pictures are those of all parts of the conversations, or
of `--images`; paths start from --out. Conversations about texts (unicorn) need all texts of their part. A part may be
a mixture itself. A killed mixture goes on where it was. Licences are those of the parts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from corpus_parts.card import sha256_of
from corpus_parts.keeping import Keeper, Row
from corpus_parts.line import FILES, MARK, log, require, start, write_mark
from corpus_parts.sampling import write_statistics

Weights = dict[str, float]


def weights_of(words: list[str]) -> Weights:
    """`name=weight`, or `name` for a weight of one.

    Raises:
        ValueError: a weight that is no positive number, or a name given twice.
    """
    weights: Weights = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            weight = float(number or "1")
        except ValueError:
            weight = 0.0
        if not name or name in weights or not 0 < weight < float("inf"):
            raise ValueError(f"{word!r} is not NAME=WEIGHT with a weight above 0, each name once")
        weights[name] = weight
    return weights


def shares(weights: Weights, available: dict[str, int], total: int | None, *, repeat: bool) -> dict[str, int]:
    """Rows that each part gives: `total` split by weights, the largest remainders rounded up.

    Raises:
        ValueError: a part has fewer rows than that, and may not repeat them; or it would give none.
    """
    whole = sum(weights.values())
    if total is None:
        total = min(int(available[name] * whole / weight + 1e-9) for name, weight in weights.items())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    if empty := [name for name, rows in available.items() if rows == 0]:
        raise ValueError(f"{empty[0]} has no rows to give; leave it out")
    for name, count in counts.items():
        if count == 0:
            raise ValueError(f"{name} gives none of {total:,} rows by its weight; raise that, or leave it out")
        if count > available[name] and not repeat:
            raise ValueError(
                f"{name} has {available[name]:,} rows and the mixture takes {count:,}; lower its weight or --total, or "
                "add --repeat"
            )
    return counts


def drawn(file: Path, available: int, count: int, seed: int) -> Iterator[tuple[Row, int]]:
    """So many rows of a file in its order, and how often each was given before; above its length, in several passes."""
    for number in range(-(-count // available) if count else 0):
        left = min(available, count - number * available)
        kept = np.zeros(available, dtype=bool)
        kept[np.random.default_rng([seed, number]).permutation(available)[:left]] = True
        with file.open(encoding="utf-8") as lines:
            for line, is_kept in zip(lines, kept, strict=True):
                if is_kept:
                    yield json.loads(line), number


def mixed(kind: str, root: Path, weights: Weights, total: int | None, *, repeat: bool, seed: int) -> Iterator[Row]:
    """The rows of one kind from all parts, under ids that begin with their part's name."""
    files = {name: root / name / f"{kind}.jsonl" for name in weights}
    available = {}
    for name, file in files.items():
        if not file.is_file():
            raise ValueError(f"{file} is not there: {name} has no {kind}")
        with file.open(encoding="utf-8") as lines:
            available[name] = sum(1 for _ in lines)
    counts = shares(weights, available, total, repeat=repeat)
    names = sorted(counts)
    streams = [drawn(files[name], available[name], counts[name], seed + place) for place, name in enumerate(names)]
    order = np.repeat(np.arange(len(names), dtype=np.int16), [counts[name] for name in names])
    np.random.default_rng([seed, len(names)]).shuffle(order)
    for part in order:
        row, again = next(streams[part])
        row["id"] = f"{names[part]}/{row['id']}" + (f"#{again}" if again else "")
        if kind == "conversations" and "image" in row:
            row["image"] = f"{names[part]}/{row['image']}"
        yield row


def pictures(root: Path, names: list[str], out: Path) -> Iterator[Row]:
    """The pictures of parts, with paths that start from `out`.

    Those of a mixture start from its own folder and lead out of it. They are not shortened: where that folder is a
    link, the path without it would lead elsewhere.
    """
    for name in names:
        file = root / name / "images.jsonl"
        if not file.is_file():
            continue  # conversations about texts, or about nothing
        mark = json.loads((root / name / MARK).read_text())
        is_mixture = "parts" in mark.get("settings", {})
        folder = os.path.relpath(root / name / ("" if is_mixture else "images"), out)
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield {"id": f"{name}/{row['id']}", "image": os.path.join(folder, row["image"])}


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the mixture")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the parts")
    parser.add_argument("--texts", nargs="*", default=[], metavar="NAME=WEIGHT")
    parser.add_argument("--conversations", nargs="*", default=[], metavar="NAME=WEIGHT")
    parser.add_argument("--images", nargs="*", metavar="NAME", help="parts whose pictures are taken")
    parser.add_argument("--total", type=int, help="texts in all")
    parser.add_argument("--talks", type=int, help="conversations in all")
    parser.add_argument("--repeat", action="store_true", help="a part may give rows more than once")
    parser.add_argument("--statistics", type=int, default=100_000, help="pictures whose moments define the alignment")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    require(options, total=(1, None), talks=(1, None), statistics=(0, None), seed=(0, None))
    texts, talks = weights_of(options.texts), weights_of(options.conversations)
    shown = list(weights_of(options.images)) if options.images is not None else sorted(talks)
    marks = {name: _mark(options.root / name, name) for name in sorted({*texts, *talks, *shown})}
    _check(options, texts, talks, list(marks), shown)

    def rows() -> Iterator[tuple[str, Row]]:
        """Rows of both kinds, each with the file that it goes into."""
        settings = {"repeat": options.repeat, "seed": options.seed}
        if texts:
            yield from (("texts", row) for row in mixed("texts", options.root, texts, options.total, **settings))
        if talks:
            found = mixed("conversations", options.root, talks, options.talks, **settings)
            yield from (("conversations", row) for row in found)
        yield from (("images", row) for row in pictures(options.root, shown, options.out))

    settings = {
        "parts": marks,
        "code": sha256_of(Path(__file__)),
        "texts": texts,
        "conversations": talks,
        "images": shown,
    }
    settings |= {name: vars(options)[name] for name in ("total", "talks", "repeat", "statistics", "seed")}
    return _make(options.out, rows(), settings, options)


def _check(options: argparse.Namespace, texts: Weights, talks: Weights, parts: list[str], shown: list[str]) -> None:
    """Holds that the options fit together. Raises ValueError where they do not."""
    if not texts and not talks:
        raise ValueError("give --texts, --conversations or both")
    for name in parts:
        if (options.root / name).resolve() == options.out.resolve():
            raise ValueError(f"--out {options.out} is a part of the mixture, {name}; give a folder of its own")
    for number, of, given in (("total", "texts", texts), ("talks", "conversations", talks)):
        if vars(options)[number] is not None and not given:
            raise ValueError(
                f"--{number} {vars(options)[number]} is a number of {of}; give --{of} too, or leave it out"
            )
    for name in shown if options.images is not None else ():
        if not (options.root / name / "images.jsonl").is_file():
            raise ValueError(f"--images {name}: {options.root / name} has no images.jsonl; leave it out")


def _make(out: Path, rows: Iterator[tuple[str, Row]], settings: dict[str, Any], options: Any) -> dict[str, int]:
    file = out / MARK
    if file.is_file() and json.loads(file.read_text()).get("settings") == settings:
        log.info("%s is finished and unchanged", out)
        return dict(json.loads(file.read_text())["counts"])
    file.unlink(missing_ok=True)
    keeper = Keeper(out, FILES, hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest())
    for place, (kind, row) in enumerate(rows):
        if place >= keeper.done:
            keeper.add(kind, row)
            keeper.step()
    counts = keeper.finish()
    counts["statistics"] = write_statistics(out, options.statistics, options.seed)
    write_mark(out, {"settings": settings, "counts": counts})
    return counts


def _mark(folder: Path, name: str) -> str:
    """The finish mark of a part, as a checksum."""
    file = folder / MARK
    if not file.is_file():
        raise ValueError(f"{folder} is not a finished corpus; make it first: python data_recipes/... --out {folder}")
    mark = json.loads(file.read_text())
    return hashlib.sha256(json.dumps([mark.get("settings"), mark.get("counts")], sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    start(main, "mixture")
