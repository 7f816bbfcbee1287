"""Speed of ReAlign: fitting beside a plain summation over the same bytes, and rows mapped a second.

python scripts/bench/alignment.py [--rows 200000] [--dim 768]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from revision import ReAlign
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


def main() -> None:
    """Measure on this machine's threads and print each number with what it is compared to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    options = parser.parse_args()
    text, image = (unit_rows(options.rows, options.dim, seed) for seed in (0, 1))

    def sums() -> None:
        for rows in (text, image, text):
            torch.from_numpy(rows).sum(dim=0, dtype=torch.float32)

    alignment = ReAlign()
    plain, fit = seconds(sums), seconds(lambda: alignment.fit(text, image))
    apply = seconds(lambda: alignment.apply(text))
    size = f"{options.rows:,} x {options.dim} float16 a side, {torch.get_num_threads()} thread(s)"
    say(
        f"fit:   {fit:.3f} s; {PASSES} plain sums over the same bytes: {plain:.3f} s; ratio {fit / plain:.1f}  ({size})"
    )
    say(f"apply: {options.rows / apply:,.0f} rows/s")


if __name__ == "__main__":
    main()
