"""Speed of alignments, and what they do to held-out rows of two stores.

python scripts/bench/alignment.py [--rows 200000] [--dim 768]       ReAlign beside plain sums over the same bytes
python scripts/bench/alignment.py --rows 20000 --methods all        seconds to fit, rows mapped a second, ms for one row
python scripts/bench/alignment.py --stores data/nano/stores/nano    the table of docs/alignment.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from revision import EmbeddingStore, ReAlign, build_alignment
from revision.alignment import METHODS
from revision.progress import say

PASSES = 3  # over both sides that are counted: the means of text and image, and the text again for mu'


def seconds(work: Callable[[], Any]) -> float:
    """The faster of two runs, so that first touches of memory do not count."""

    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once(), once())


def unit_rows(count: int, dim: int, seed: int) -> np.ndarray:
    """float16 [count, dim] on the sphere, around a mean of their own, as one side of the modality gap."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dim), dtype=np.float32) + rng.standard_normal(dim, dtype=np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def realign_speed(text: np.ndarray, image: np.ndarray) -> None:
    """ReAlign's fit beside a plain summation over the bytes that it reads."""

    def sums() -> None:
        for rows in (text, image, text):
            torch.from_numpy(rows).sum(dim=0, dtype=torch.float32)

    alignment = ReAlign()
    plain, fit = seconds(sums), seconds(lambda: alignment.fit(text, image))
    apply = seconds(lambda: alignment.apply(text))
    size = f"{len(text):,} x {text.shape[1]} float16 a side, {torch.get_num_threads()} thread(s)"
    say(
        f"fit:   {fit:.3f} s; {PASSES} plain sums over the same bytes: {plain:.3f} s; ratio {fit / plain:.1f}  ({size})"
    )
    say(f"apply: {len(text) / apply:,.0f} rows/s")


def speed(method: str, text: np.ndarray, image: np.ndarray) -> None:
    """One method: fitting, mapping many rows, and mapping one as training does."""
    alignment = build_alignment(method=method)
    started = time.perf_counter()
    alignment.fit(text, image)
    fit = time.perf_counter() - started
    one = text[:1].astype(np.float32)
    single = seconds(lambda: [alignment.apply(one, row_ids=[0]) for _ in range(20)]) / 20
    many = seconds(lambda: alignment.apply(text))
    say(f"{method:15} fit {fit:7.2f} s   {len(text) / many:>10,.0f} rows/s   one row {1e3 * single:.2f} ms")


def nearest(rows: np.ndarray, count: int) -> np.ndarray:
    """The `count` nearest others of each unit row [n, d], by cosine: int [n, count], in no order."""
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    return np.asarray(np.argpartition(-cosines, count, axis=1)[:, :count])


def geometry(folder: Path) -> None:
    """Fit on two thirds of the stores `texts` and `statistics`, measure on the rest."""
    rng = np.random.default_rng(0)
    sides = []
    for name in ("texts", "statistics"):
        rows = EmbeddingStore.open(folder / name).rows(slice(None)).astype(np.float64)
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True))[rng.permutation(len(rows))]
        sides.append((rows[: 2 * len(rows) // 3], rows[2 * len(rows) // 3 :]))
    (text, others), (image, goal) = sides
    before = nearest(others, 10)
    for method in METHODS:
        alignment = build_alignment(method=method).fit(text, image)
        found, seen = alignment.apply(others, row_ids=range(len(others))), alignment.apply_to_images(goal)
        gap = np.linalg.norm(found.mean(axis=0) - seen.mean(axis=0))
        apart = np.linalg.norm(np.cov(found.T) - np.cov(seen.T)) / np.linalg.norm(np.cov(seen.T))
        kept = np.mean([len({*a} & {*b}) / 10 for a, b in zip(before, nearest(found, 10), strict=True)])
        size = min(len(found), len(seen))
        mixed = (nearest(np.concatenate([found[:size], seen[:size]]), 20)[:size] >= size).mean()
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in alignment.details().items())
        say(f"{method:15} gap {gap:.4f}  covariance {apart:.2f}  kept {kept:.2f}  mixing {mixed:.2f}  {numbers}")


def main() -> None:
    """Measure on this machine's threads and print each number with what it is compared to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, "all"], default=[])
    parser.add_argument("--stores", type=Path, help="folder with the stores `texts` and `statistics`")
    options = parser.parse_args()
    if options.stores is not None:
        geometry(options.stores)
        return
    text, image = (unit_rows(options.rows, options.dim, seed) for seed in (0, 1))
    if not options.methods:
        realign_speed(text, image)
    for method in METHODS if "all" in options.methods else options.methods:
        speed(method, text, image)


if __name__ == "__main__":
    main()
