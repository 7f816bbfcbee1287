"""What a rank holds of its corpora in the memory of the host, and how fast it draws from them.

python scripts/bench/host_memory.py [--quick] [--texts N] [--conversations N] [--folder DIR]

1  the most memory while texts of a store and conversations are written as lines, once for all ranks of a machine
2  memory of a rank that opens them and draws samples at random
3  random samples a second, of either

Memory is what no file backs, above the libraries. The corpora take about 4 GiB in DIR (a temporary folder unless told)
and have to fit into the page cache; --quick makes them smaller by a factor of 100.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from measuring import PeakMemory, conclude, report, seconds, unit_rows

from revision import EmbeddingStore
from revision.data.rows import Rows
from revision.data.samples import KeptSamples, Samples, TextSamples, conversation_samples
from revision.embeddings import StoreWriter
from revision.progress import say
from revision.records import read_conversations

LIMIT = 1024  # MiB a rank may hold above its model
SHARD = 4096  # rows, as `embed` writes them
DIM = 16
DRAWN = 20_000
MIB = 2**20


def texts(rng: random.Random, characters: int) -> list[str]:
    """A thousand made-up texts of so many characters."""
    return ["".join(rng.choices("etaoin shrdlu", k=characters)) for _ in range(1000)]


def store_of(folder: Path, count: int) -> EmbeddingStore:
    """A store of texts of 200 characters."""
    path = folder / "texts"
    writer = StoreWriter(path, kind="text", dim=DIM, encoder={"name": "made up"}, records_fingerprint="", records=count,
                         shard_size=SHARD, reject_budget=0.0)  # fmt: skip
    block, made = unit_rows(SHARD, DIM, 0), texts(random.Random(0), 200)
    for shard in writer.missing():
        places = writer.positions(shard)
        payloads = [f"{made[place % len(made)]} {place}" for place in places]
        writer.write(shard, rows=block[: len(places)], ids=[f"text-{place:08}" for place in places], payloads=payloads,
                     lengths=[len(text) for text in payloads], rejected=[])  # fmt: skip
    writer.finish()
    return EmbeddingStore.open(path)


def conversations_of(folder: Path, count: int, rows: int) -> Path:
    """A records file of conversations of four turns and 650 characters, each about a row of the store."""
    path, rng = folder / "conversations.jsonl", random.Random(1)
    made = texts(rng, 160)
    with path.open("w", encoding="utf-8") as file:
        for place in range(count):
            asked, said, more, end = rng.choices(made, k=4)
            turns = [("user", f"<image> {asked}"), ("assistant", said), ("user", more), ("assistant", end)]
            row = {"id": f"talk-{place:08}", "image": f"text-{rng.randrange(rows):08}",
                   "messages": [{"role": role, "content": content} for role, content in turns]}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return path


def opened(folder: Path, store: EmbeddingStore, records: Path) -> dict[str, Samples]:
    """Samples of both stages, written as lines where they are not yet."""
    rows = Rows([store], embed_dim=DIM)
    talks = conversation_samples(read_conversations(records), rows)
    return {
        "texts": TextSamples(store, ["<image>"], 0, folder / "kept-texts"),
        "conversations": KeptSamples.at(folder / "kept-conversations", talks),
    }


def draw(samples: Samples, places: np.ndarray) -> None:
    """Samples at places int64 [n], one by one."""
    for place in places.tolist():
        assert samples[place].messages


def measure(folder: Path, store: EmbeddingStore, records: Path) -> None:
    """All numbers of these corpora."""
    with PeakMemory() as writing:
        sizes = {name: len(samples) for name, samples in opened(folder, store, records).items()}
    say(", ".join(f"{size:,} {name}" for name, size in sizes.items()))
    report("most memory while both are written", writing.bytes / MIB, "MiB", most=LIMIT)
    rng, speeds = np.random.default_rng(0), {}
    with PeakMemory() as rank:
        for name, samples in opened(folder, store, records).items():
            places = rng.integers(0, len(samples), DRAWN)
            speeds[name] = DRAWN / seconds(partial(draw, samples, places))
    report("memory of a rank that draws from both", rank.bytes / MIB, "MiB", most=LIMIT)
    for name, speed in speeds.items():
        report(f"random {name}", speed, "/s", least=10_000)


def main() -> None:
    """Make the corpora and measure them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the records")
    parser.add_argument("--texts", type=int, default=2_000_000)
    parser.add_argument("--conversations", type=int, default=1_200_000)
    parser.add_argument("--folder", type=Path, help="where the corpora are made; they are deleted again")
    options = parser.parse_args()
    part = 100 if options.quick else 1
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, rows = Path(name), options.texts // part
        records = conversations_of(folder, options.conversations // part, rows)
        measure(folder, store_of(folder, rows), records)


if __name__ == "__main__":
    main()
    conclude()
