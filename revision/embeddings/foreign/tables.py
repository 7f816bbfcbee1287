"""Parts that are columns of lists: parquet row groups, and the record batches of data sets saved by `datasets`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from revision.embeddings.foreign.labels import (
    ArrowColumn,
    LabelNames,
    parquet_column,
    parquet_file,
    plain,
    text_column,
    vector_name,
)
from revision.embeddings.foreign.parts import Column, Part, Rows, float_name

STATE = "state.json"  # of a data set saved by `datasets`
_BATCH = 8192


@dataclass(frozen=True)
class ParquetPart(Part):
    """One row group of a parquet file, whose column `vectors` holds lists of floats."""

    path: Path
    group: int
    vectors: str
    names: LabelNames

    @property
    def choice(self) -> str:
        """The column."""
        return self.vectors

    def open(self) -> Rows:
        """All rows in an unnamed temporary file: in a compressed column no row can be read alone."""
        with tempfile.TemporaryFile() as file:
            rows = np.memmap(file, np.dtype(self.dtype), mode="w+", shape=(self.rows, self.dim))
        done = 0
        for block in self.stream(_BATCH):
            rows[done : done + len(block)] = block
            done += len(block)
        return rows.view(np.ndarray)

    def has(self, name: str) -> bool:
        """Whether the file has them."""
        return self.names.of(name) is not None

    def column(self, name: str) -> Column | None:
        """Labels of the same row group."""
        column = self.names.of(name)
        return None if column is None else parquet_column(self.path, column, self.group)

    def stream(self, size: int) -> Iterator[np.ndarray]:
        """Rows in order, decoded a few at a time, without the temporary file."""
        done = 0
        with parquet_file(self.path) as file:
            try:
                for batch in file.iter_batches(batch_size=size, row_groups=[self.group], columns=[self.vectors]):
                    yield list_rows(batch.column(0), self.dim, self.name, done)
                    done += len(batch)
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{self.name} cannot be read ({error}); copy or write the file again") from error


def parquet_parts(path: Path, kind: str, asked: str | None) -> list[ParquetPart]:
    """The row groups of a parquet file.

    Args:
        path: the file.
        kind: "text" or "image".
        asked: column of the embeddings; None: the only one that fits, or the one with a usual name.

    Raises:
        ValueError: not a parquet file, truncated, or without a column that can be meant.
    """
    with parquet_file(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        vectors, dtype = _vectors(schema, asked, kind, str(path))
        names = LabelNames.among(schema.names, kind)
        parts = []
        dim = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            name = f"{path}, row group {group}" if metadata.num_row_groups > 1 else str(path)
            if not dim and rows:
                first = next(file.iter_batches(batch_size=1, row_groups=[group], columns=[vectors]))
                dim = _first_length(first.column(0), name)
            if rows:
                parts.append(ParquetPart(name, rows, dim, dtype, (path,), path, group, vectors, names))
    return parts


class ArrowFile:
    """An Arrow stream on disk, mapped when it is first needed and again in each process that it is handed to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[ArrowFile], tuple[Path]]:
        return ArrowFile, (self.path,)

    @cached_property
    def batches(self) -> list[pa.RecordBatch]:
        """All record batches; their buffers lie in the mapped file."""
        try:
            with pa.ipc.open_stream(pa.memory_map(str(self.path))) as reader:
                return [*reader]
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"{self.path} is not a whole Arrow stream ({error}); save the data set again with save_to_disk"
            ) from error


@dataclass(frozen=True)
class ArrowPart(Part):
    """One record batch of an Arrow stream."""

    source: ArrowFile
    number: int
    vectors: str
    names: LabelNames

    @property
    def choice(self) -> str:
        """The column."""
        return self.vectors

    def open(self) -> Rows:
        """The values where they lie in the mapped file."""
        return list_rows(self.source.batches[self.number].column(self.vectors), self.dim, self.name, 0)

    def has(self, name: str) -> bool:
        """Whether the data set has them."""
        return self.names.of(name) is not None

    def column(self, name: str) -> ArrowColumn | None:
        """Labels of the same batch."""
        column = self.names.of(name)
        if column is None:
            return None
        return text_column([self.source.batches[self.number].column(column)], f"{self.name}, column {column!r}")


def dataset_parts(folder: Path, kind: str, asked: str | None) -> list[ArrowPart]:
    """The record batches of a data set that `datasets` saved with `save_to_disk`.

    Args:
        folder: with `state.json`.
        kind: "text" or "image".
        asked: column of the embeddings; None: the only one that fits, or the one with a usual name.

    Raises:
        ValueError: a file is missing or truncated, the rows were re-ordered by an index, or no column can be meant.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        files = [ArrowFile(folder / entry["filename"]) for entry in state["_data_files"]]
        reordered = bool(state.get("_indices_files"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / STATE} is not of a saved data set ({error}); save it again") from error
    if reordered:
        raise ValueError(f"{folder} is a selection of other rows; call flatten_indices() and save_to_disk() again")
    parts: list[ArrowPart] = []
    for file in files:
        if not file.path.is_file():
            raise ValueError(f"{file.path} is missing, and {folder / STATE} lists it; copy the data set again")
        parts += _arrow_parts(file, kind, asked)
    return parts


def dataset_splits(folder: Path) -> list[str]:
    """Names of the splits where a folder holds several data sets, else none.

    Raises:
        ValueError: the file that lists them cannot be read.
    """
    file = folder / "dataset_dict.json"
    if not file.is_file():
        return []
    try:
        return [plain(name) for name in json.loads(file.read_text(encoding="utf-8"))["splits"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not of a saved data set ({error}); save it again") from error


def _arrow_parts(file: ArrowFile, kind: str, asked: str | None) -> Iterator[ArrowPart]:
    dim = 0
    for number, batch in enumerate(file.batches):
        name = f"{file.path}, batch {number}"
        vectors, dtype = _vectors(batch.schema, asked, kind, str(file.path))
        names = LabelNames.among(batch.schema.names, kind)
        if len(batch):
            dim = dim or _first_length(batch.column(vectors), name)
            yield ArrowPart(name, len(batch), dim, dtype, (file.path,), file, number, vectors, names)


def _vectors(schema: pa.Schema, asked: str | None, kind: str, where: str) -> tuple[str, str]:
    """Name and dtype of the column of embeddings."""
    found = {
        field.name: field.type.value_type
        for field in schema
        if _is_list(field.type) and pa.types.is_floating(field.type.value_type)
    }
    name = vector_name(found, asked, kind, where, "column")
    return name, float_name(np.dtype(found[name].to_pandas_dtype()), where)


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _first_length(lists: pa.Array, where: str) -> int:
    if pa.types.is_fixed_size_list(lists.type):
        return int(lists.type.list_size)
    if not lists[0].is_valid:
        raise ValueError(f"{where} row 0 is null; leave records without an embedding out")
    return len(lists[0])


def list_rows(lists: pa.Array, dim: int, where: str, start: int) -> np.ndarray:
    """Lists of floats as an array [n, dim], without copying where nothing is null.

    Args:
        lists: Arrow lists of any of its three kinds.
        dim: length that each must have.
        where, start: for messages: what they are part of, and the number of the first.

    Raises:
        ValueError: a list that is null, of another length, or holds a null.
    """
    if lists.null_count:
        row = int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{where} row {start + row} is null; leave records without an embedding out")
    if pa.types.is_fixed_size_list(lists.type):
        wrong, lengths = np.empty(0, np.int64) if lists.type.list_size == dim else np.zeros(1, np.int64), None
    else:
        lengths = np.diff(lists.offsets.to_numpy())
        wrong = np.flatnonzero(lengths != dim)
    if wrong.size:
        found = lists.type.list_size if lengths is None else int(lengths[wrong[0]])
        raise ValueError(f"{where} row {start + int(wrong[0])} has {found} numbers but the rows before it {dim}")
    values = lists.flatten()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // dim
        raise ValueError(f"{where} row {start + row} holds a null; embeddings are numbers throughout")
    return values.to_numpy(zero_copy_only=False).reshape(len(lists), dim)
