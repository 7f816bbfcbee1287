"""What reading an embedding store costs, each number against its limit.

python scripts/bench/store.py [--quick] [--rows N] [--dim D] [--folder DIR]

1  opening a store of ten million rows
2  random batches, as a shuffled epoch asks for them, beside the same rows out of one array in memory
3  rows by id
4  memory that is left behind

The store takes rows x (2 dim + 40) bytes in DIR (a temporary folder unless told) and has to fit into the page cache;
--quick makes it smaller by a factor of 100.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from measuring import anonymous, conclude, report, seconds, unit_rows

from revision import EmbeddingStore
from revision.embeddings import StoreWriter
from revision.progress import say
from revision.schema import EmbedConfig

BATCH, BATCHES = 1024, 200
SHARD = EmbedConfig().shard_size
MIB = 2**20


def store_of(folder: Path, rows: int, dim: int) -> Path:
    """A store of made-up rows, block after block of the same ones."""
    path = folder / "texts"
    writer = StoreWriter(path, kind="text", dim=dim, encoder={"name": "made up"}, records_fingerprint="", records=rows,
                         shard_size=SHARD, reject_budget=0.0)  # fmt: skip
    block = unit_rows(SHARD, dim, 0)
    for shard in writer.missing():
        ids = [f"text-{number:08}" for number in writer.positions(shard)]
        count = len(ids)
        writer.write(shard, rows=block[:count], ids=ids, payloads=ids, lengths=[4] * count, rejected=[])
    writer.finish()
    return path


def batches_of(rows: int) -> list[np.ndarray]:
    """Random row numbers, int64 [BATCHES][BATCH]."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, rows, BATCH) for _ in range(BATCHES)]


def gathered(held: np.ndarray, batches: list[np.ndarray]) -> float:
    """Rows a second out of one array [rows, d]."""
    return BATCH * BATCHES / seconds(lambda: [held[batch] for batch in batches], repeats=3)


def measure(path: Path, rows: int, dim: int) -> None:
    """All numbers of one store."""
    say(f"{rows:,} rows of {dim} float16, {rows * dim * 2 / 2**30:.2f} GiB, {-(-rows // SHARD)} shards")
    report("open", seconds(lambda: EmbeddingStore.open(path), repeats=3), "s", most=1)
    store = EmbeddingStore.open(path)
    for _ in store.chunks():
        pass  # every map is open and, where it fits, in the page cache
    batches = batches_of(rows)

    def read(source: EmbeddingStore) -> None:
        """All batches."""
        for batch in batches:
            source.rows(batch)

    read(store)
    before = anonymous()
    warm = BATCH * BATCHES / seconds(partial(read, store), repeats=3)
    left = anonymous() - before
    report(f"random batches of {BATCH:,}", warm, "rows/s", least=300_000)
    report("the same out of one array in memory", gathered(np.concatenate(list(store.chunks())), batches), "rows/s")
    names = store.ids(batches[0][:64])
    report("64 random ids to rows, sidecars read", seconds(lambda: store.index_of(names), repeats=1), "s")
    report("memory left behind by the batches", left / MIB, "MiB", most=64)


def main() -> None:
    """Make a store and measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where the store is made; it is deleted again")
    options = parser.parse_args()
    rows = options.rows // (100 if options.quick else 1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measure(store_of(Path(name), rows, options.dim), rows, options.dim)


if __name__ == "__main__":
    main()
    conclude()
