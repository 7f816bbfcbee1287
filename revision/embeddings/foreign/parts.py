"""What every foreign format is read as: parts, each a run of rows with at most two columns of labels."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

BFLOAT16 = "bfloat16"
FLOATS = ("float16", "float32", "float64")

_WHOLE = 2**20  # bytes: a file of up to so many is hashed in full
_SAMPLES = 16  # of a larger one, so many blocks, evenly spaced, both ends included
_SAMPLE = 2**16  # bytes a block


class Rows(Protocol):
    """Stored vectors [n, d] that are read when they are indexed: an array, a memory map, or places in a file."""

    def __getitem__(self, index: slice | np.ndarray, /) -> np.ndarray: ...


class Column(Protocol):
    """One label of each row of a part: its id, its text or the path of its picture."""

    def take(self, within: np.ndarray) -> list[str]:
        """Labels of row numbers int64 [n], counted from the start of the part."""
        ...


@dataclass(frozen=True)
class Part(ABC):
    """A run of consecutive rows: a file, or a piece of one that can be read by itself.

    Attributes:
        name: for messages: the path, and the piece where the file has several.
        rows, dim: how many, and how wide.
        dtype: as stored: float16, bfloat16, float32 or float64.
        files: all that the rows and labels are read from.
    """

    name: str
    rows: int
    dim: int
    dtype: str
    files: tuple[Path, ...]

    @property
    @abstractmethod
    def choice(self) -> str:
        """Which of the vectors in its files these are: a fingerprint of the files alone would not tell."""

    @abstractmethod
    def open(self) -> Rows:
        """The rows as stored, ready to be indexed; no row is in memory yet."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there are labels "id" or "payload"; none is read."""

    @abstractmethod
    def column(self, name: str) -> Column | None:
        """Labels, "id" or "payload"; None where the format has none."""

    def stream(self, size: int) -> Iterator[np.ndarray]:
        """Rows in order as numpy floats, [<=size, d] at a time."""
        rows = self.open()
        for start in range(0, self.rows, size):
            yield native(rows[start : min(start + size, self.rows)], self.dtype)


def native(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Stored rows as floats of this machine: bfloat16, of which numpy has none, becomes float32 without loss.

    Args:
        rows: floats in any byte order, or for bfloat16 its bits as unsigned 16-bit integers.
        dtype: as stored.
    """
    if dtype == BFLOAT16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows if rows.dtype.isnative else rows.astype(rows.dtype.newbyteorder("="))


def memory_dtype(dtype: str) -> np.dtype:
    """The dtype that `native` gives."""
    return np.dtype(np.float32 if dtype == BFLOAT16 else dtype)


def float_name(dtype: np.dtype, where: str) -> str:
    """Name of a stored dtype.

    Raises:
        ValueError: not one of the floats that embeddings come in.
    """
    if dtype == np.dtype("V2"):  # what numpy makes of bfloat16 arrays that were saved through ml_dtypes
        return BFLOAT16
    name = dtype.newbyteorder("=").name
    if name not in FLOATS:
        raise ValueError(f"{where} has dtype {dtype}; embeddings are float16, bfloat16, float32 or float64: cast them")
    return name


def file_sample(path: Path) -> str:
    """Size and sha256 of a file, or of evenly spaced blocks where it is large, as one text.

    Rows made anew, by another model or in another order, change every block; a changed row between two blocks of a
    large file goes unnoticed. That is the price of opening terabytes at once.
    """
    size = os.stat(path).st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return f"{size}:{digest.hexdigest()}"
