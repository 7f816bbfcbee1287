"""How exact the alignments and their measures are: each error beside what it may be.

python scripts/bench/alignment_exact.py [--quick]

1  ReAlign beside the authors' own script, on rows that it has aligned (tests/golden)
2  every method beside itself on the same rows in other chunks and another order
3  `until=1e-7` beside the paper's one step: the gap that is left
4  the identity T = 1 - ||mu||^2 of unit rows, and the drift of a mean that is put on the sphere, beside a simulation
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from measuring import conclude, report, unit_rows

from revision import ReAlign, build_alignment
from revision.alignment.methods import built_in
from revision.geometry import measures
from revision.progress import say

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "realign_reference.npz"
DIM = 256


def largest(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of an entry."""
    return float(np.abs(np.asarray(found, dtype=np.float64) - expected).max())


def beside_the_authors() -> None:
    """What their script has made of the same rows."""
    golden = np.load(GOLDEN)
    alignment = ReAlign().fit(golden["text"], golden["image"])
    known = alignment.statistics
    say(
        f"{len(golden['text']):,} texts and {len(golden['image']):,} pictures of {alignment.dim} of the authors' script"
    )
    report(
        "aligned rows: largest difference",
        largest(alignment.apply(golden["text"].astype(np.float32)), golden["aligned"]),
        "",
        most=1e-6,
    )
    report("mean of the texts", largest(known.text.mean.numpy(), golden["mu_text"]), "", most=1e-6)
    report("mean of the pictures", largest(known.image.mean.numpy(), golden["mu_image"]), "", most=1e-6)
    report("scale", abs(alignment.scale - float(golden["scale"])), "", most=1e-6)
    report("trace of the texts", abs(known.text.trace - float(golden["trace_text"])), "", most=1e-6)
    report("trace of the pictures", abs(known.image.trace - float(golden["trace_image"])), "", most=1e-6)


def in_other_chunks(count: int) -> None:
    """Sums in another order; quantiles are read off a sketch, so that one method has another limit."""
    text, image = (unit_rows(count, DIM, seed).astype(np.float64) for seed in (0, 1))
    order = np.random.default_rng(2).permutation(count)
    say(f"{count:,} rows of {DIM} a side, shuffled and in 7 chunks, beside the same as they are")
    for method in built_in():
        straight = build_alignment(method=method).fit(text, image).apply(text)
        other = build_alignment(method=method).fit(np.array_split(text[order], 7), np.array_split(image[order], 7))
        limit = 1e-10 if method == "quantile" else 1e-12
        report(f"{method}: largest difference", largest(other.apply(text), straight), "", most=limit)


def to_a_tolerance(count: int) -> None:
    """The gap between the means over the fitted rows."""
    text, image = (unit_rows(count, DIM, seed).astype(np.float64) for seed in (0, 1))
    goal = (image / np.linalg.norm(image, axis=1, keepdims=True)).mean(axis=0)
    once, until = ReAlign().fit(text, image), ReAlign(until=1e-7).fit(text, image)
    gaps = [float(np.linalg.norm(found.apply(text).mean(axis=0) - goal)) for found in (once, until)]
    say(f"{count:,} rows of {DIM} a side: centroid gap, taken anew from the aligned rows")
    report("before", until.statistics.gap_before, "")
    report("the paper's one centroid step", gaps[0], "")
    report("until=1e-7", gaps[1], "", most=1e-7)


def identities(count: int) -> None:
    """Statements of the paper that hold whatever the data."""
    rows = unit_rows(count, DIM, 0).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mean = rows.mean(axis=0)
    rng = np.random.default_rng(0)
    middle, root = np.array([1.2, 0.4, -0.3, 0.2]), rng.normal(size=(4, 4)) * 0.03
    noise = rng.normal(size=(10 * count, 4)) @ root.T
    noisy = np.concatenate([middle + noise, middle - noise])  # in pairs, so that odd orders cancel
    found = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).mean(axis=0) - middle / np.linalg.norm(middle)
    drift = measures.phantom_drift(middle, root @ root.T)
    say(f"{count:,} unit rows; {2 * 10 * count:,} rows about a mean, for the drift, whose formula is of second order")
    report("|T - (1 - ||mu||^2)|", abs(measures.trace(rows) - (1 - float(mean @ mean))), "", most=1e-12)
    report(
        "drift: difference / its length", float(np.linalg.norm(found - drift) / np.linalg.norm(drift)), "", most=0.05
    )


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    count = 2_000 if parser.parse_args().quick else 20_000
    beside_the_authors()
    in_other_chunks(count)
    to_a_tolerance(count)
    identities(count)


if __name__ == "__main__":
    main()
    conclude()
