"""Rows written as plain files for other programs: `.npy` and parquet, in the layout of clip-retrieval.

A file of rows is written down to the disk under another name, after its labels, and then renamed: it is there in full
or not at all, and an interrupted export continues at the first missing one. `export.json` comes last.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revision.embeddings.foreign.finding import METADATA, UNFINISHED, VECTORS
from revision.embeddings.store import EmbeddingStore
from revision.files import HashingFile, file_sha256, write_whole

VERSION = 1
EXPORT = "export.json"
_PAYLOAD_COLUMNS = {"text": "caption", "image": "image_path"}  # as clip-retrieval calls them
DTYPES = ("float16", "float32")
_BLOCK = 8192  # rows in memory at a time

Transform = Callable[[np.ndarray, np.ndarray], np.ndarray]


def export_rows(
    store: EmbeddingStore,
    folder: Path | str,
    *,
    transform: Transform | None = None,
    described: dict[str, Any] | None = None,
    dtype: str = "float16",
    shard_size: int = 1_000_000,
    on_rows: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Writes the rows of a store, and their ids and texts or paths, in constant memory.

    Args:
        store: texts or images, of our own or foreign.
        folder: made if missing; `text_emb/text_emb_<n>.npy` or `img_emb/img_emb_<n>.npy` float [rows, d], and
            `metadata/metadata_<n>.parquet` with `id` and `caption` or `image_path` go there.
        transform: from rows [n, d] and their numbers int64 [n] to the rows to write; None: as they are stored.
        described: what the transform is, as JSON values; it decides whether an export may be continued.
        dtype: float16 or float32.
        shard_size: rows a file.
        on_rows: called with the number of rows that were dealt with since the last call.

    Returns:
        The content of `export.json`.

    Raises:
        ValueError: another dtype, no row a file, or a folder that holds something else than an export of the same rows
            or cannot be written.
    """
    folder = Path(folder)
    if dtype not in DTYPES or shard_size < 1:
        raise ValueError(f"dtype={dtype} must be one of {', '.join(DTYPES)}, and shard_size={shard_size} at least 1")
    plan: dict[str, Any] = {
        "version": VERSION, "kind": store.manifest.kind, "count": len(store), "dim": store.dim, "dtype": dtype,
        "shard_size": shard_size, "source": store.fingerprint(), "encoder": store.manifest.encoder,
        "transform": described,
    }  # fmt: skip
    try:
        if _begin(folder, plan):
            on_rows(len(store))
            return _read(folder / EXPORT)
        count = -(-len(store) // shard_size)
        shards = [_Shard(folder, store, number, count, dtype) for number in range(count)]
        for number, blocks in groupby(_blocks(store, shard_size), key=lambda block: block[0] // shard_size):
            shard = shards[number]
            if shard.vectors.is_file():
                on_rows(min(shard_size, len(store) - shard.number * shard_size))
            else:
                shard.write(blocks, shard_size, transform, on_rows)
        files = [file for shard in shards for file in (shard.vectors, shard.metadata)]
        digests = {str(file.relative_to(folder)): file_sha256(file) for file in files}
        written = {**plan, "files": digests}
        write_whole(folder / EXPORT, _json(written))
        for leftover in (folder / UNFINISHED, *folder.rglob(".*.partial")):
            leftover.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write the export {folder}: {error.strerror or error}; free space or mend the cause and run the "
            "command again, it resumes at the first missing file"
        ) from error
    return written


class _Shard:
    """One file of rows and one of labels."""

    def __init__(self, folder: Path, store: EmbeddingStore, number: int, shards: int, dtype: str) -> None:
        kind = store.manifest.kind
        name = str(number).zfill(len(str(shards)))
        self.vectors = folder / VECTORS[kind] / f"{VECTORS[kind]}_{name}.npy"
        self.metadata = folder / METADATA / f"{METADATA}_{name}.parquet"
        self.number, self._store, self._dtype = number, store, np.dtype(dtype)

    def write(
        self,
        blocks: Iterator[tuple[int, np.ndarray]],
        size: int,
        transform: Transform | None,
        on_rows: Callable[[int], object],
    ) -> None:
        """Labels first, rows second, so that the shard is there when its rows are."""
        start = self.number * size
        stop = min(start + size, len(self._store))
        self._write_labels(start, stop)

        def write_rows(file: HashingFile) -> None:
            """A `.npy` file block by block, its header first."""
            header = {"descr": self._dtype.newbyteorder("<").str, "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (stop - start, self._store.dim)})
            for first, rows in blocks:
                if transform is not None:
                    rows = transform(rows, np.arange(first, first + len(rows)))
                file.write(np.ascontiguousarray(rows, self._dtype.newbyteorder("<")))
                on_rows(len(rows))

        write_whole(self.vectors, write_rows)

    def _write_labels(self, start: int, stop: int) -> None:
        kind = self._store.manifest.kind
        names = ["id"]
        if self._store.has_payload:
            names.append(_PAYLOAD_COLUMNS[kind])
        aside = self.metadata.with_name(f".{self.metadata.name}.{secrets.token_hex(4)}.partial")
        schema = pa.schema({name: pa.string() for name in names})
        try:
            with pq.ParquetWriter(aside, schema) as writer:
                for first in range(start, stop, _BLOCK):
                    place = slice(first, min(first + _BLOCK, stop))
                    columns = [self._store.ids(place), *([self._store.payload(place)] if len(names) > 1 else [])]
                    writer.write_table(pa.table(dict(zip(names, columns, strict=True)), schema=schema))
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(aside, self.metadata)
        finally:
            aside.unlink(missing_ok=True)


def _blocks(store: EmbeddingStore, shard_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """All rows in order with the number of the first, none across the border of a shard."""
    first = 0
    for chunk in store.chunks(_BLOCK):
        while len(chunk):
            count = min(len(chunk), shard_size - first % shard_size)
            yield first, chunk[:count]
            first, chunk = first + count, chunk[count:]


def _begin(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether the same export is there already, whole; else the folder is ready for it.

    Raises:
        ValueError: the folder holds something else.
    """
    for name in (EXPORT, UNFINISHED):
        if not (folder / name).is_file():
            continue
        found = _read(folder / name)
        changed = [key for key, value in json.loads(json.dumps(plan)).items() if found.get(key) != value]
        if changed:
            raise ValueError(
                f"{folder} holds an export of something else (changed: {', '.join(changed)}); delete it, or export to "
                "another folder"
            )
        if name == EXPORT and all((folder / file).is_file() for file in found["files"]):
            return True
        break
    else:
        if folder.exists() and next(folder.iterdir(), None) is not None:
            raise ValueError(f"{folder} is not empty and holds no export; export to another folder")
    for place in (folder / VECTORS[plan["kind"]], folder / METADATA):
        place.mkdir(parents=True, exist_ok=True)
    write_whole(folder / UNFINISHED, _json(plan))
    (folder / EXPORT).unlink(missing_ok=True)
    return False


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete the folder and export again") from error
    return found if isinstance(found, dict) else {}


def _json(content: dict[str, Any]) -> Callable[[HashingFile], int]:
    return lambda file: file.write((json.dumps(content, indent=1) + "\n").encode())
