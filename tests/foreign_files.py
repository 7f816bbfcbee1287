"""The same rows in every foreign format, for the tests of reading them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COUNT, DIM = 23, 6
IDS = [f"id-{number}" for number in range(COUNT)]
TEXTS = [f"text {number}, naïve" for number in range(COUNT)]
CUTS = (0, 10, 10, 19, COUNT)  # borders of the parts, one of which is empty

Writer = Callable[[Path, np.ndarray], Path]


def unit_rows(seed: int = 0, count: int = COUNT, middle: float = -0.3) -> np.ndarray:
    """float32 [count, 6]."""
    rows = np.random.default_rng(seed).normal(size=(count, DIM)) + middle
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def records(rows: np.ndarray) -> list[dict[str, Any]]:
    """As the authors' embedding script makes them."""
    fields = zip(IDS, TEXTS, rows, strict=False)
    return [{"id": name, "caption": text, "embed": row} for name, text, row in fields]


def write_npy(folder: Path, rows: np.ndarray) -> Path:
    """A folder of `.npy` files with parquet files of the same names."""
    folder.mkdir()
    for number, (start, stop) in enumerate(pairwise(CUTS), 8):  # 10 sorts behind 9
        np.save(folder / f"part-{number}.npy", rows[start:stop])
        pq.write_table(pa.table({"id": IDS[start:stop], "text": TEXTS[start:stop]}), folder / f"part-{number}.parquet")
    return folder


def write_clip_retrieval(folder: Path, rows: np.ndarray) -> Path:
    """`text_emb`, `img_emb` (the rows negated) and `metadata`, as clip-retrieval's inference leaves them."""
    for name in ("text_emb", "img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, (start, stop) in enumerate(pairwise(CUTS), 8):
        np.save(folder / f"text_emb/text_emb_{number}.npy", rows[start:stop])
        np.save(folder / f"img_emb/img_emb_{number}.npy", -rows[start:stop])
        columns = {"image_path": IDS[start:stop], "caption": TEXTS[start:stop]}
        pq.write_table(pa.table(columns), folder / f"metadata/metadata_{number}.parquet")
    return folder


def write_parquet(folder: Path, rows: np.ndarray) -> Path:
    """One file of several row groups, with another column of numbers."""
    columns = {"id": IDS, "text": TEXTS, "embedding": list(rows), "score": list(range(len(rows)))}
    table = pa.table({name: values[: len(rows)] for name, values in columns.items()})
    pq.write_table(table, folder.with_suffix(".parquet"), row_group_size=10)
    return folder.with_suffix(".parquet")


def write_fixed_parquet(folder: Path, rows: np.ndarray) -> Path:
    """A folder of files whose lists are of fixed size."""
    folder.mkdir()
    flat = pa.array(rows.reshape(-1))
    table = pa.table({"uid": IDS, "caption": TEXTS, "vector": pa.FixedSizeListArray.from_arrays(flat, DIM)})
    for number, (start, stop) in enumerate(pairwise(CUTS)):
        pq.write_table(table.slice(start, stop - start), folder / f"{number}.parquet")
    return folder


def write_dataset(folder: Path, rows: np.ndarray) -> Path:
    """A data set saved by `datasets` in two files."""
    import datasets

    datasets.disable_progress_bars()
    columns = {"id": IDS, "text": TEXTS, "embedding": rows}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder), num_shards=2)
    return folder


def write_safetensors(folder: Path, rows: np.ndarray) -> Path:
    """A folder of safetensors files with parquet files of the same names, and a tensor of another shape."""
    from safetensors.numpy import save_file

    folder.mkdir()
    for number, (start, stop) in enumerate(pairwise(CUTS)):
        part = np.ascontiguousarray(rows[start:stop])
        save_file({"rows": part, "mean": part.sum(axis=0)}, folder / f"{number}.safetensors")
        pq.write_table(pa.table({"id": IDS[start:stop], "text": TEXTS[start:stop]}), folder / f"{number}.parquet")
    return folder


def write_pickles(folder: Path, rows: np.ndarray) -> Path:
    """The authors' chunks: `text_embeds_<n>.pkl`, lists of records."""
    folder.mkdir()
    found = records(rows)
    for number, (start, stop) in enumerate(((0, 10), (10, 19), (19, COUNT)), 8):
        (folder / f"text_embeds_{number}.pkl").write_bytes(pickle.dumps(found[start:stop]))
    return folder


WRITERS: dict[str, Writer] = {
    "npy": write_npy,
    "clip-retrieval": write_clip_retrieval,
    "parquet": write_parquet,
    "fixed parquet": write_fixed_parquet,
    "dataset": write_dataset,
    "safetensors": write_safetensors,
    "pickles": write_pickles,
}


def pairs_file(path: Path) -> Path:
    """Pairs records for all ids."""
    lines = [json.dumps({"id": name, "image": f"{name}.png", "text": "x"}) for name in IDS]
    path.write_text("\n".join(lines) + "\n")
    return path
