"""The chunks of ReVision's authors: pickled lists of records with one vector each, read where they lie in the file.

Reading one means walking through its instructions once, a few seconds for the authors' 200,000 records, and keeping for
each record where its vector and its text lie. Vectors and texts stay in the file, which is mapped.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from revision.embeddings.foreign.described import Array, DamagedError, Encoding, Span
from revision.embeddings.foreign.labels import LabelNames, plain, vector_name
from revision.embeddings.foreign.opcodes import describe
from revision.embeddings.foreign.parts import Column, Part, Rows, float_name

_TEXTS = "U"  # numpy's letter for arrays of texts


@dataclass(frozen=True)
class PickledPart(Part):
    """A pickle of records.

    Attributes:
        path: the file.
        vectors: where the vectors lie, or the vectors where they are lists of numbers.
        labels: "id" and "payload", those that there are.
    """

    path: Path
    vectors: _Places | np.ndarray
    labels: dict[str, _Places | list[str]]

    @property
    def choice(self) -> str:
        """Where the first vector lies, or the sum of all that lie in memory."""
        if isinstance(self.vectors, np.ndarray):
            return hashlib.sha256(self.vectors.tobytes()).hexdigest()
        return str(self.vectors.starts[:1].tolist())

    def open(self) -> Rows:
        """The vectors in the mapped file."""
        if isinstance(self.vectors, np.ndarray):
            return self.vectors
        dtype = np.dtype(self.vectors.dtype)
        return _ScatteredRows(self.path, self.vectors, dtype, self.dim)

    def has(self, name: str) -> bool:
        """Whether the records have them."""
        return name in self.labels

    def column(self, name: str) -> Column | None:
        """Labels in the mapped file, or as they are where they were no texts."""
        labels = self.labels.get(name)
        if isinstance(labels, _Places):
            return _ScatteredTexts(self.path, labels)
        return None if labels is None else _Held(labels)


@dataclass(frozen=True)
class _Places:
    """Where the values of one field lie: int64 [n] starts and stops, one encoding."""

    starts: np.ndarray
    stops: np.ndarray
    encoding: Encoding
    dtype: str = ""

    @classmethod
    def of(cls, spans: Sequence[Span], dtype: str = "") -> _Places | None:
        """None where the encodings differ."""
        encodings = {span.encoding for span in spans}
        if len(encodings) != 1:
            return None
        starts = np.fromiter((span.start for span in spans), np.int64, len(spans))
        stops = np.fromiter((span.stop for span in spans), np.int64, len(spans))
        return cls(starts, stops, encodings.pop(), dtype)

    def spans(self, within: np.ndarray) -> list[Span]:
        """Where the texts of these rows lie."""
        places = zip(self.starts[within].tolist(), self.stops[within].tolist(), strict=True)
        return [Span(start, stop, self.encoding) for start, stop in places]


class _ScatteredRows:
    """Vectors of equal length anywhere in a mapped file."""

    def __init__(self, path: Path, places: _Places, dtype: np.dtype, dim: int) -> None:
        self._path, self._data = path, map_file(path)
        self._places, self._dtype, self._dim = places, dtype, dim
        self._windows = None
        if places.encoding is Encoding.raw and len(places.starts):
            size = dtype.itemsize * dim
            # Every run of bytes as long as a vector: a view, from which only those asked for are copied.
            self._windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(self._data, np.uint8), size)

    def __getitem__(self, index: slice | np.ndarray, /) -> np.ndarray:
        if self._windows is not None:
            return self._windows[self._places.starts[index]].view(self._dtype)
        numbers = np.arange(len(self._places.starts))[index]
        with _named(self._path):
            arrays = [Array(self._dtype, (self._dim,), data=span) for span in self._places.spans(numbers)]
            rows = [array.load(self._data) for array in arrays]
        return np.stack(rows) if rows else np.empty((0, self._dim), self._dtype)


class _ScatteredTexts:
    """Texts anywhere in a mapped file."""

    def __init__(self, path: Path, places: _Places) -> None:
        self._path, self._data, self._places = path, map_file(path), places

    def take(self, within: np.ndarray) -> list[str]:
        """The texts of these rows."""
        with _named(self._path):
            return [span.text(self._data) for span in self._places.spans(within)]


class _Held:
    """Texts in memory."""

    def __init__(self, values: list[str]) -> None:
        self._values = values

    def take(self, within: np.ndarray) -> list[str]:
        """The texts of these rows."""
        return [self._values[row] for row in within.tolist()]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Damage that is met inside becomes a sentence with the name of the file."""
    try:
        yield
    except DamagedError as error:
        raise ValueError(f"{path} is damaged: {error}; write or copy it again") from error


def map_file(path: Path) -> mmap.mmap:
    """A whole file, mapped for reading.

    Raises:
        ValueError: an empty file.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty; copy or write it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def pickled_part(path: Path, kind: str, asked: str | None) -> PickledPart:
    """A pickle: a list of records (dicts), a mapping of ids to vectors, one array [n, d], a list of vectors, or a
    mapping of columns.

    Args:
        path: the file.
        kind: "text" or "image".
        asked: the key of the vectors; None: the only one that fits, or the one with a usual name.

    Raises:
        ValueError: it names anything but numpy arrays, is damaged, or none of these forms; says which.
    """
    data = map_file(path)
    found = describe(data, path)
    fields, vectors = _fields(found, path, kind, asked)
    names = LabelNames.among(fields.keys(), kind)
    with _named(path):
        labels = {name: _labels(fields[key], path, data) for name in ("id", "payload") if (key := names.of(name))}
        stored, dtype, dim = _vectors(vectors, path, data)
    rows = len(stored) if isinstance(stored, np.ndarray) else len(stored.starts)
    for name, values in labels.items():
        count = len(values.starts) if isinstance(values, _Places) else len(values)
        if count != rows:
            raise ValueError(f"{path} has {count} entries of {names.of(name)!r} for {rows} vectors; write one each")
    return PickledPart(str(path), rows, dim, dtype, (path,), path, stored, labels)


def _fields(found: Any, path: Path, kind: str, asked: str | None) -> tuple[dict[str, Any], Any]:
    """The fields of the records, each with the values of all records; and the one with the vectors."""
    match found:
        case [dict() as first, *_]:
            fields: dict[str, Any] = {key: [] for key in first if isinstance(key, str)}
            for row, record in enumerate(found):
                if not isinstance(record, dict) or not record.keys() >= fields.keys():
                    raise ValueError(f"{path} record {row} has other fields than record 0 ({plain(', '.join(fields))})")
                for key, values in fields.items():
                    values.append(record[key])
            key = vector_name([k for k, v in fields.items() if _is_vector(v[0])], asked, kind, str(path), "field")
            return fields, fields[key]
        case dict() if found and all(_is_vector(value) for value in found.values()):
            return {"id": [str(key) for key in found]}, list(found.values())
        case dict():
            fields = {key: value for key, value in found.items() if isinstance(key, str)}
            fits = [key for key, value in fields.items() if _is_matrix(value)]
            key = vector_name(fits, asked, kind, str(path), "field")
            return fields, fields[key]
        case Array(data=Span()) | [Array(data=Span()) | list() | tuple(), *_]:
            return {}, found
        case _:
            raise ValueError(
                f"{path} holds a {type(found).__name__} that is no list of records with a vector each; write "
                '[{"id": ..., "caption": ..., "embed": array}, ...]'
            )


def _is_vector(value: Any) -> bool:
    if isinstance(value, Array):
        return len(value.shape) == 1 and value.dtype is not None and value.dtype.kind == "f"
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(x, float) for x in value)


def _is_numbers(value: Any) -> bool:
    """Whether a value can be one vector among others, whose first is one."""
    if isinstance(value, Array):
        return value.dtype is not None and value.data is not None
    return isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value)


def _is_matrix(value: Any) -> bool:
    if isinstance(value, Array):
        return len(value.shape) == 2 and value.dtype is not None and value.dtype.kind == "f"
    return isinstance(value, list | tuple) and bool(value) and _is_vector(value[0])


def _vectors(found: Any, path: Path, data: mmap.mmap) -> tuple[_Places | np.ndarray, str, int]:
    """The vectors or their places, their dtype and dimension."""
    if isinstance(found, Array):
        if len(found.shape) != 2:
            raise ValueError(f"{path} holds an array of shape {found.shape}; embeddings are [n, d]")
        assert found.dtype is not None and found.data is not None
        name = float_name(found.dtype, str(path))
        if found.fortran or found.data.encoding is not Encoding.raw:
            return found.load(data), name, found.shape[1]
        width = found.shape[1] * found.dtype.itemsize
        starts = found.data.start + width * np.arange(found.shape[0])
        return _Places(starts, starts + width, Encoding.raw, found.dtype.str), name, found.shape[1]
    first = found[0]
    shape, dtype = (first.shape, first.dtype) if isinstance(first, Array) else ((len(first),), None)
    for row, value in enumerate(found):
        if not _is_numbers(value):
            raise ValueError(f"{path} record {row} has no vector: one array or list of floats [d]; leave it out")
        size = value.shape if isinstance(value, Array) else (len(value),)
        if size != shape:
            raise ValueError(f"{path} record {row} has a vector of shape {size} but record 0 of {shape}")
        if (value.dtype if isinstance(value, Array) else None) != dtype:
            raise ValueError(f"{path} record {row} has a vector of another dtype than record 0, {dtype}")
    if len(shape) != 1:
        raise ValueError(f"{path} holds vectors of shape {shape}; a record has one vector [d]")
    if dtype is None:  # lists of numbers, which lie in the file as nothing that could be mapped
        with np.errstate(over="ignore"):  # to infinity, which the readers of rows refuse by the row's number
            return np.array(found, np.float32), "float32", shape[0]
    name = float_name(dtype, str(path))
    places = _Places.of([value.data for value in found], dtype.str)
    if places is None:
        return np.stack([value.load(data) for value in found]), name, shape[0]
    return places, name, shape[0]


def _labels(values: Any, path: Path, data: mmap.mmap) -> _Places | list[str]:
    """Texts where they lie, or as they are where they were no texts."""
    if isinstance(values, Array):
        loaded = values.load(data)
        if loaded.ndim != 1 or loaded.dtype.kind not in (_TEXTS, "i", "u"):
            raise ValueError(f"{path} holds labels of dtype {loaded.dtype}; ids and texts are texts or whole numbers")
        try:
            return [str(value) for value in loaded.tolist()]
        except ValueError as error:  # numpy's, of an array of texts
            raise DamagedError("an array of texts holds what is no character") from error
    if not isinstance(values, list | tuple):
        raise ValueError(f"{path} holds a single value where each row has an id or a text; write one each")
    if all(isinstance(value, Span) for value in values):
        places = _Places.of(values)
        return [value.text(data) for value in values] if places is None else places
    for row, value in enumerate(values):
        if type(value) not in (Span, int, str):
            what = "no label" if value is None else f"a label of type {type(value).__name__}"
            raise ValueError(f"{path} record {row} has {what}; ids and texts are texts or numbers")
    return [value.text(data) if isinstance(value, Span) else str(value) for value in values]
