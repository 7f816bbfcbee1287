"""All alignments side by side: their speed, or what they do to held-out rows of two stores.

python scripts/bench/alignment.py [--rows 20000] [--dim 768]        seconds to fit, rows mapped a second, ms for one row
python scripts/bench/alignment.py --quick                           the same of few rows
python scripts/bench/alignment.py --stores data/nano/stores/nano    the table of docs/alignment.md

ReAlign against its limits: alignment_fit.py and alignment_apply.py.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from measuring import seconds, unit_rows

from revision import EmbeddingStore, build_alignment
from revision.alignment.methods import built_in
from revision.progress import say


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
    for method in built_in():
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
    """Measure on this machine's threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--quick", action="store_true", help="1,000 rows of 64")
    parser.add_argument("--methods", nargs="+", choices=built_in(), default=built_in())
    parser.add_argument("--stores", type=Path, help="folder with the stores `texts` and `statistics`")
    options = parser.parse_args()
    if options.stores is not None:
        geometry(options.stores)
        return
    count, dim = (1000, 64) if options.quick else (options.rows, options.dim)
    text, image = (unit_rows(count, dim, seed) for seed in (0, 1))
    for method in options.methods:
        speed(method, text, image)


if __name__ == "__main__":
    main()
