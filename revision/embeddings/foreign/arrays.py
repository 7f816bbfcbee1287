"""Parts that are plain arrays in a file: `.npy` and safetensors, read through memory maps."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from revision.embeddings.foreign.labels import Sidecar, plain, vector_name
from revision.embeddings.foreign.parts import BFLOAT16, Column, Part, Rows, float_name

_SAFETENSORS = {"F16": "float16", "BF16": BFLOAT16, "F32": "float32", "F64": "float64"}
_LONGEST_HEADER = 100_000_000  # bytes: safetensors' own limit


@dataclass(frozen=True)
class MappedPart(Part):
    """A two-dimensional array that lies in one piece in a file.

    Attributes:
        path: the file.
        offset: where in it the array starts, in bytes.
        stored: dtype to map it with.
        order: "C", or "F" for columns first.
        sidecar: its labels.
    """

    path: Path
    offset: int
    stored: np.dtype
    order: str
    sidecar: Sidecar | None

    @property
    def choice(self) -> str:
        """Where the array starts."""
        return str(self.offset)

    def open(self) -> Rows:
        """A memory map, copy on write: torch wants writable memory, and the file must stay as it is."""
        shape = (self.rows, self.dim)
        order: Any = self.order  # numpy's annotation asks for a literal
        if self.rows == 0:  # no byte to map
            return np.empty(shape, self.stored)
        found = np.memmap(self.path, self.stored, mode="c", offset=self.offset, shape=shape, order=order)
        return found.view(np.ndarray)

    def has(self, name: str) -> bool:
        """Whether the sidecar has them."""
        return self.sidecar is not None and self.sidecar.names.of(name) is not None

    def column(self, name: str) -> Column | None:
        """Labels of the sidecar."""
        return None if self.sidecar is None else self.sidecar.column(name)


def numpy_part(path: Path, kind: str, labels: Path | None = None) -> MappedPart:
    """A `.npy` file [n, d].

    Args:
        path: the file.
        kind: "text" or "image".
        labels: parquet file with a line a row; None: `<name>.parquet` beside it, if there is one.

    Raises:
        ValueError: not a `.npy` file, truncated, not two-dimensional, or not of floats.
    """
    with path.open("rb") as file:
        shape, fortran, dtype = _numpy_header(file, path)
        offset = file.tell()
    stored = np.dtype(np.uint16) if dtype == np.dtype("V2") else dtype
    return _mapped(path, shape, float_name(dtype, str(path)), offset, stored, "F" if fortran else "C", kind, labels)


def safetensors_part(path: Path, kind: str, asked: str | None) -> MappedPart:
    """The tensor of embeddings [n, d] in a safetensors file.

    Args:
        path: the file.
        kind: "text" or "image".
        asked: name of the tensor; None: the only one that fits, or the one with a usual name.

    Raises:
        ValueError: not a safetensors file, truncated, or without a tensor that can be meant.
    """
    tensors = {name: found for name, found in _safetensors(path).items() if len(found.shape) == 2}
    found = tensors[vector_name(tensors, asked, kind, str(path), "tensor")]
    return _mapped(path, found.shape, found.dtype, found.offset, found.stored, "C", kind, None)


def _mapped(
    path: Path, shape: tuple[int, ...], dtype: str, offset: int, stored: np.dtype, order: str, kind: str,
    labels: Path | None,
) -> MappedPart:  # fmt: skip
    if len(shape) != 2:
        raise ValueError(f"{path} has shape {shape}; embeddings are [n, d]: one row of d numbers each")
    _require_bytes(path, offset + math.prod(shape) * stored.itemsize)
    beside = path.with_suffix(".parquet")
    labels = labels or (beside if beside.is_file() else None)
    sidecar = None if labels is None else Sidecar.beside(labels, shape[0], kind, path)
    return MappedPart(
        name=str(path), rows=shape[0], dim=shape[1], dtype=dtype, path=path, offset=offset, stored=stored, order=order,
        sidecar=sidecar, files=(path,) if sidecar is None else (path, sidecar.path),
    )  # fmt: skip


def _numpy_header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a .npy file ({error}); save the array with numpy.save") from error


@dataclass(frozen=True)
class _Tensor:
    """A tensor of floats: shape, name of its dtype, dtype to map it with, and where in the file it starts, in bytes."""

    shape: tuple[int, ...]
    dtype: str
    stored: np.dtype
    offset: int


def _safetensors(path: Path) -> dict[str, _Tensor]:
    """The tensors of floats by name."""
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or not 0 < length <= _LONGEST_HEADER:
            raise ValueError(f"{path} is not a safetensors file; save the rows with safetensors' save_file")
        _require_bytes(path, 8 + length)
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is not a safetensors file ({error}); save the rows again") from error
    found = {name: _tensor(entry, 8 + length, f"{path}, tensor {plain(name)!r}") for name, entry in entries.items()}
    _require_bytes(path, 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0))
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _tensor(entry: Any, start: int, where: str) -> _Tensor | None:
    """What an entry of the header says; None for a tensor of other numbers than floats.

    Raises:
        ValueError: the entry is not whole, or lies: its bytes are not as many as its shape needs.
    """
    try:
        dtype, shape, (begin, end) = _SAFETENSORS.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError("its shape and data_offsets must be whole numbers from 0 on")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: its entry in the header cannot be read ({error}); save the rows again") from error
    if dtype is None:
        return None
    stored = np.dtype("<u2" if dtype == BFLOAT16 else np.dtype(dtype).newbyteorder("<"))
    if end - begin != math.prod(shape) * stored.itemsize:
        raise ValueError(
            f"{where} has {end - begin:,} bytes, but its shape {shape} of {dtype} needs "
            f"{math.prod(shape) * stored.itemsize:,}; save the rows again"
        )
    return _Tensor(tuple(shape), dtype, stored, start + begin)


def _require_bytes(path: Path, wanted: int) -> None:
    size = path.stat().st_size
    if size < wanted:
        raise ValueError(f"{path} is truncated: it has {size:,} of {wanted:,} bytes; copy or write it again")
