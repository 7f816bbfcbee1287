"""Ids, texts and picture paths that lie beside or among foreign embeddings, found by the names that are in use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# In the order of preference. `key` and `image_path` are clip-retrieval's; both sides of a pair share them.
IDS = ("id", "ids", "key", "uid", "image_path")
PAYLOADS = {
    "text": ("text", "texts", "caption", "captions", "TEXT", "sentence"),
    "image": ("image_path", "image", "path", "file_name", "url", "URL"),
}
_OF_KIND = {
    "text": ("text_embedding", "text_embeddings", "text_embeds", "text_emb", "caption_embedding"),
    "image": ("image_embedding", "image_embeddings", "image_embeds", "image_emb", "img_emb"),
}
_OF_ANY_KIND = ("embed", "embedding", "embeddings", "emb", "embeds", "vector", "vectors", "features")

_SMALL = 2**20  # bytes: a larger column is moved out of memory, into a temporary file


@dataclass(frozen=True)
class LabelNames:
    """The columns of one table that are read as "id" and as "payload"; None for a missing one."""

    id: str | None
    payload: str | None

    @classmethod
    def among(cls, columns: Collection[str], kind: str) -> LabelNames:
        """Those of a table of texts or of images."""
        return cls(_first(IDS, columns), _first(PAYLOADS[kind], columns))

    def of(self, name: str) -> str | None:
        """The column behind "id" or "payload"."""
        return self.id if name == "id" else self.payload


def plain(text: str) -> str:
    """A name out of somebody's file, fit for a message: nothing in it ends the line or speaks to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def vector_name(found: Collection[str], asked: str | None, kind: str, where: str, what: str) -> str:
    """Which of several columns, keys or tensors holds the embeddings.

    Args:
        found: those whose type fits.
        asked: the last part of the configured path, where that is no file.
        kind: "text" or "image", which prefers names like `text_embedding`.
        where, what: the file, and what a candidate is called, for messages.

    Raises:
        ValueError: none fits, the one asked for does not, or several do and their names do not tell.
    """
    listed = plain(", ".join(sorted(found))) or "none"
    if asked is not None:
        if asked not in found:
            raise ValueError(f"{where} has no {what} {asked!r} of embeddings; those that fit: {listed}")
        return asked
    if not found:
        raise ValueError(f"{where} has no {what} of embeddings: one list of floats a row; write one")
    if len(found) == 1:
        return next(iter(found))
    named = _first((*_OF_KIND[kind], *_OF_ANY_KIND), found)
    if named is None:
        raise ValueError(f"{where} has several {what}s of embeddings ({listed}); name one at the end of the path")
    return named


class ArrowColumn:
    """Labels in an Arrow column."""

    def __init__(self, values: pa.ChunkedArray) -> None:
        self._values = values

    def take(self, within: np.ndarray) -> list[str]:
        """Labels of row numbers int64 [n]; a null is the empty text."""
        return ["" if value is None else value for value in self._values.take(pa.array(within)).to_pylist()]


@dataclass(frozen=True)
class Sidecar:
    """A parquet file with one line a row of its neighbour."""

    path: Path
    names: LabelNames

    @classmethod
    def beside(cls, path: Path, rows: int, kind: str, owner: Path) -> Sidecar:
        """Opens it, which reads its last few bytes.

        Raises:
            ValueError: it cannot be read, or has another number of rows than its neighbour `owner`.
        """
        with parquet_file(path) as file:
            found, columns = file.metadata.num_rows, file.schema_arrow.names
        if found != rows:
            raise ValueError(f"{path} has {found} lines but {owner} {rows} rows; they must be of one piece")
        return cls(path, LabelNames.among(columns, kind))

    def column(self, name: str) -> ArrowColumn | None:
        """Labels "id" or "payload"."""
        column = self.names.of(name)
        return None if column is None else parquet_column(self.path, column)


def parquet_file(path: Path) -> pq.ParquetFile:
    """An open parquet file.

    Raises:
        ValueError: it is not one, or not whole.
    """
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a whole parquet file ({_line(error)}); write it again") from error


def parquet_column(path: Path, name: str, group: int | None = None) -> ArrowColumn:
    """One column of a parquet file, or of one of its row groups, as texts."""
    with parquet_file(path) as file:
        groups = None if group is None else [group]
        batches = file.iter_batches(batch_size=65536, row_groups=groups, columns=[name])
        return text_column((batch.column(0) for batch in batches), f"{path}, column {name!r}")


def text_column(arrays: Iterable[pa.Array], where: str) -> ArrowColumn:
    """Texts or whole numbers as a column of texts: in memory where they are few, else in an unnamed temporary file.

    Raises:
        ValueError: of another type.
    """
    return ArrowColumn(_moved_out(as_text(array, where) for array in arrays))


def as_text(array: pa.Array, where: str) -> pa.Array:
    """Texts as they are, whole numbers as their digits.

    Raises:
        ValueError: of another type.
    """
    values = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    if not (pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_integer(values)):
        raise ValueError(f"{where} is of type {array.type}; ids, texts and paths are texts or whole numbers")
    return array.cast(pa.large_string())


def _moved_out(arrays: Iterator[pa.Array]) -> pa.ChunkedArray:
    """The arrays as one column. Past a certain size they are written to the disk and mapped from there.

    A text of a compressed file cannot be read alone, and a corpus of texts held by each process of a training run is
    more than its machine has; a mapped file is shared with the page cache and goes when the process does.
    """
    held: list[pa.Array] = []
    for array in arrays:
        held.append(array)
        if sum(chunk.nbytes for chunk in held) > _SMALL:
            break
    else:
        return pa.chunked_array(held, type=pa.large_string())
    descriptor, name = tempfile.mkstemp(suffix=".arrow")
    os.close(descriptor)
    try:
        with pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, pa.schema({"value": pa.large_string()})) as writer:
            for array in (*held, *arrays):
                writer.write_batch(pa.record_batch({"value": array}))
        return pa.ipc.open_file(pa.memory_map(name)).read_all().column("value")
    finally:
        os.unlink(name)


def _first(names: Iterable[str], found: Collection[str]) -> str | None:
    return next((name for name in names if name in found), None)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
