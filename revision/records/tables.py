"""Rows of parquet files, and of any table of Arrow: pictures inside become blobs, or are spared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from revision.pictures import Blob
from revision.records.spans import ALL, Spans

_ROWS = 1024
_PICTURES = 32  # rows at once where they hold pictures: a batch of a thousand could be gigabytes


def rows(path: Path, *, pictures: bool, wanted: Spans = ALL) -> Iterator[tuple[str, Any] | None]:
    """Yields (where, row) of each row of a parquet file, None for those that are not wanted.

    Row groups without a wanted row are not read. Raises ValueError where the file cannot be read.
    """
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            held = picture_columns(file.schema_arrow)
            spared = [] if pictures else picture_columns(file.schema_arrow, lists=False)
            columns = [name for name in file.schema_arrow.names if name not in spared]
            size = _PICTURES if set(held) - set(spared) else _ROWS
            for group in range(file.num_row_groups):
                behind = number + file.metadata.row_group(group).num_rows
                if not wanted.touch(number, behind):
                    yield from repeat(None, behind - number)
                    number = behind
                    continue
                for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=columns):
                    if not wanted.touch(number, number + batch.num_rows):
                        yield from repeat(None, batch.num_rows)
                        number += batch.num_rows
                        continue
                    for row in _plain(batch, path, number):
                        where = f"{path}, row {number + 1}"
                        yield (where, with_blobs(row, held, where)) if number in wanted else None
                        number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file (after row {number}): {error}") from error


def _plain(batch: pa.RecordBatch, path: Path, before: int) -> list[dict[str, Any]]:
    """The rows of a batch; `before` are those before it. Raises ValueError for a text that is not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(batch.num_rows):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    column[row].as_py()
                except UnicodeDecodeError as error:
                    where = f"{path}, row {before + row + 1}"
                    raise ValueError(f"{where}: {name!r} is not valid UTF-8: {error}") from error
        raise


def picture_columns(schema: pa.Schema, *, lists: bool = True) -> list[str]:
    """The columns that hold bytes: plain, or as `datasets` stores a picture, with its path.

    lists: of such ones too. They are read even where pictures are spared, since it counts how many they hold.
    """
    return [field.name for field in schema if _holds_pictures(field.type, lists)]


def _holds_pictures(kind: pa.DataType, lists: bool) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return lists and _holds_pictures(kind.value_type, False)
    return _is_bytes(kind) or _is_picture(kind)


def with_blobs(row: dict[str, Any], held: Sequence[str], where: str) -> dict[str, Any]:
    """A row whose bytes are blobs. Bytes that are null, or were not read, are an empty one, which no decoder takes."""
    for name in held:
        value = row.get(name)
        if isinstance(value, list):
            row[name] = [_blob(one, f"{where}, {name} {place}") for place, one in enumerate(value, start=1)]
        else:
            row[name] = _blob(value, f"{where}, {name}")
    return row


def _blob(value: Any, name: str) -> Blob | str:
    cell = value if isinstance(value, dict) else {"bytes": value}
    if cell.get("bytes") is None and cell.get("path"):
        return str(cell["path"])
    return Blob(name, cell.get("bytes") or b"")


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_picture(kind: pa.DataType) -> bool:
    names = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    return names.keys() == {"bytes", "path"} and _is_bytes(names["bytes"])
