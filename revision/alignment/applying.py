"""A map of unit rows, carried out on rows in whatever form a caller holds them, and given back in that form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

import numpy as np
import torch

from revision.alignment.rows import STORE_CHUNK, Array, Store, blocks, check_array, naming, to_sphere

Stream: TypeAlias = Store | Iterable[Array]
Mapping: TypeAlias = Callable[[torch.Tensor, np.ndarray | None], torch.Tensor]


class Kernel(Protocol):
    """The mapping once more, for rows as the caller holds them."""

    def takes(self, target: torch.Tensor) -> bool:
        """Whether it maps rows of this dtype on this device."""
        ...

    def __call__(self, rows: Array, target: torch.Tensor) -> np.ndarray:
        """Map rows [n, d] into the target and return the numbers of those that it leaves to the mapping."""
        ...


def applied(
    rows: Array | Stream, keys: np.ndarray | None, what: str, mapping: Mapping, dim: int, kernel: Kernel | None = None
) -> Array | Iterator[Array]:
    """Unit rows out of rows of any norm, in the caller's kind, dtype and device.

    Args:
        rows: numpy array or torch tensor [n, d] of any float dtype, left unchanged; or a store or an iterable of such
            arrays, which are mapped one by one as the result is read.
        keys: uint64, one a row over all arrays, or None.
        what: name of the rows in error messages: text or image.
        mapping: from unit rows [<=b, d], free to be overwritten, and their keys, to unit rows; float32 for rows of half
            precision, float64 for others.
        dim: width d that the rows must have.
        kernel: does the same without keys, and faster, for the rows that it takes.

    Raises:
        ValueError: rows of another type, shape or width, a zero, NaN or infinite row, one that is mapped onto the zero
            vector, or not exactly one key a row.
    """
    if not isinstance(rows, np.ndarray | torch.Tensor | str) and isinstance(rows, Store | Iterable):
        for number, array in enumerate(rows if isinstance(rows, list | tuple) else ()):
            check_array(array, f"rows[{number}]")  # at once, where what is wrong can be seen at once
        return _in_turn(rows, keys, what, mapping, dim, kernel)
    check_array(rows, "rows")
    if keys is not None and len(keys) != len(rows):
        raise ValueError(f"row_ids has {len(keys)} entries for {len(rows)} rows; give one id a row")
    return _to_array(rows, keys, what, mapping, dim, kernel, 0)


def _in_turn(
    stream: Stream, keys: np.ndarray | None, what: str, mapping: Mapping, dim: int, kernel: Kernel | None
) -> Iterator[Array]:
    """The results for the arrays of a stream, one by one."""
    done = 0
    for array in stream.chunks(STORE_CHUNK) if isinstance(stream, Store) else stream:
        check_array(array, "rows")
        stop = done + len(array)
        if keys is not None and len(keys) < stop:
            raise ValueError(f"row_ids has {len(keys)} entries for {stop} rows or more; give one id a row")
        yield _to_array(array, None if keys is None else keys[done:stop], what, mapping, dim, kernel, done)
        done = stop
    if keys is not None and len(keys) != done:
        raise ValueError(f"row_ids has {len(keys)} entries for {done} rows; give one id a row")


def _to_array(
    rows: Array, keys: np.ndarray | None, what: str, mapping: Mapping, dim: int, kernel: Kernel | None, first: int
) -> Array:
    """The result for one array, whose first row has the number `first` in error messages."""
    if rows.shape[1] != dim:
        raise ValueError(f"rows have {rows.shape[1]} columns but the alignment was fitted on {dim}")
    result, target = _room_for(rows)
    if kernel is None or not kernel.takes(target):
        _map_into(target, rows, keys, what, mapping, first)
    else:
        for row in kernel(rows, target):
            _map_into(target[row : row + 1], rows[row : row + 1], None, what, mapping, first + int(row))
    if isinstance(rows, np.ndarray) and isinstance(result, np.ndarray):
        return result.astype(rows.dtype, copy=False)  # in the byte order that the caller has
    return result


def _map_into(
    target: torch.Tensor, rows: Array, keys: np.ndarray | None, what: str, mapping: Mapping, first: int
) -> None:
    """Map rows block by block."""
    working = torch.float32 if target.element_size() == 2 else torch.float64
    for start, block in blocks(rows, working):
        stop = start + len(block)
        unit = to_sphere(block, what, first + start)
        # A training loop's autocast would multiply in bfloat16 what is to be exact.
        with naming(what, range(first + start, first + stop)), torch.autocast(block.device.type, enabled=False):
            target[start:stop] = mapping(unit, None if keys is None else keys[start:stop])


def _room_for(rows: Array) -> tuple[Array, torch.Tensor]:
    """An empty array for the result of `rows`, and the tensor that shares its memory.

    On the CPU the memory is numpy's also for a tensor: it asks for large pages, and the first touch of small ones took
    longer than the arithmetic (1.05 against .16 microseconds a row of 1280 float16).
    """
    if isinstance(rows, np.ndarray):
        result = np.empty(rows.shape, rows.dtype.newbyteorder("="))
        return result, torch.from_numpy(result)
    if rows.device.type != "cpu":
        tensor = torch.empty_like(rows)
    else:
        size = rows.element_size()
        tensor = torch.from_numpy(np.empty(rows.shape, f"u{size}")).view(rows.dtype)
    return tensor, tensor
