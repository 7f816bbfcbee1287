"""Rows of embeddings in whatever form a caller holds them, read block by block and put on the unit sphere.

A source is a numpy array or memory map, a torch tensor on any device, an embedding store, or an iterable of such arrays
that can be read more than once. All of them become tensors of a few hundred rows, small enough to stay in a processor's
cache while they are worked on, so that memory stays constant whatever the source's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

Array: TypeAlias = np.ndarray | torch.Tensor


@runtime_checkable
class Store(Protocol):
    """The part of an embedding store that an alignment needs."""

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """Rows in order, [<=size, d] at a time, from the first row on at each call."""
        ...

    def fingerprint(self) -> str:
        """Hash of the rows and of the encoder that made them."""
        ...


Source: TypeAlias = Array | Store | Iterable[Array]

STORE_CHUNK = 8192
CPU_BLOCK = 2**22  # bytes a thread, about what a core keeps in its cache
GPU_BLOCK = 2**28  # bytes: launches, not caches, are what costs there

NUMPY_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
TORCH_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_array(rows: Array, what: str) -> None:
    """Refuse anything but a floating-point array or tensor [n, d].

    Args:
        rows: what the caller gave.
        what: its name in error messages.

    Raises:
        ValueError: not a numpy array or torch tensor, masked, not two-dimensional, or not of a supported float type.
    """
    if not isinstance(rows, np.ndarray | torch.Tensor):
        raise ValueError(f"{what} is a {type(rows).__name__}; rows must be a numpy array or a torch tensor [n, d]")
    if isinstance(rows, np.ma.MaskedArray):
        raise ValueError(
            f"{what} is a masked array, and a mask has no meaning here; give the rows that count, as .data"
        )
    if rows.ndim != 2:
        raise ValueError(f"{what} has shape {tuple(rows.shape)}; rows must be [n, d]: add or drop a dimension")
    if not rows.shape[1]:
        raise ValueError(f"{what} has shape {tuple(rows.shape)}; a row has at least one column")
    known = rows.dtype.newbyteorder("=") in NUMPY_FLOATS if isinstance(rows, np.ndarray) else rows.dtype in TORCH_FLOATS
    if not known:
        raise ValueError(f"{what} has dtype {rows.dtype}; cast the rows to float16, bfloat16, float32 or float64")


def blocks(rows: Array, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
    """Copy a checked array piece by piece into the dtype to compute in.

    Yields:
        Number of the first row, and a tensor [<=b, d] of that dtype on the device of the rows. All pieces share one
        buffer, free to be overwritten: memory taken and returned for each would cost more than the arithmetic.
    """
    device = torch.device("cpu") if isinstance(rows, np.ndarray) else rows.device
    count, dim = rows.shape
    most = (CPU_BLOCK * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK) // (dim * dtype.itemsize)
    size = max(1, min(count, most))
    buffer = torch.empty(size, dim, dtype=dtype, device=device)
    single = torch.empty(size, dim, dtype=torch.float32, device=device) if _goes_by_float32(rows, dtype) else None
    staging = None
    if isinstance(rows, np.ndarray):
        # torch takes no read-only or unaligned memory, no strides that are negative or no multiple of the entry (as in
        # a field of a structured array) and no foreign byte order: such rows pass through memory that has none of them.
        even = all(stride >= 0 and stride % rows.itemsize == 0 for stride in rows.strides)
        if rows.flags.behaved and rows.dtype.isnative and even:
            rows = torch.from_numpy(rows)
        else:
            staging = np.empty((size, dim), rows.dtype.newbyteorder("="))
    for start in range(0, count, size):
        block = rows[start : start + size]
        if isinstance(block, np.ndarray):
            assert staging is not None
            staging[: len(block)] = block
            block = torch.from_numpy(staging[: len(block)])
        block = block.detach()
        if single is not None:
            block = single[: len(block)].copy_(block)
        yield start, buffer[: len(block)].copy_(block)


def _goes_by_float32(rows: Array, dtype: torch.dtype) -> bool:
    """Whether a copy into the dtype is quicker by way of float32, which is exact too.

    On a processor half precision to float64 is made one entry at a time, which costs as much as all of the arithmetic.
    """
    half = rows.dtype.itemsize == 2
    return half and dtype == torch.float64 and (isinstance(rows, np.ndarray) or rows.device.type == "cpu")


def arrays(source: Source, what: str) -> Iterator[Array]:
    """The arrays that a source consists of, in order.

    Raises:
        ValueError: an iterator, or something that is no source at all.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        yield source
    elif isinstance(source, Store):
        yield from source.chunks(STORE_CHUNK)
    elif isinstance(source, Iterator):
        raise ValueError(
            f"{what} is an iterator, which can be read only once, and fitting reads the rows several times: "
            f"pass a list, or an object whose __iter__ starts again"
        )
    elif isinstance(source, Iterable):
        yield from source
    else:
        raise ValueError(f"{what} is a {type(source).__name__}; give an array, a store or an iterable of arrays")


class Block(NamedTuple):
    """Some consecutive rows of a source, of any norm, free to be overwritten and valid until the next are asked for.

    Attributes:
        numbers: of the rows in the source, uint64 [n].
        rows: float64 [n, d].
        norms: theirs, [n, 1].
    """

    numbers: np.ndarray
    rows: torch.Tensor
    norms: torch.Tensor

    def unit(self) -> torch.Tensor:
        """The rows put on the sphere, in place."""
        return self.rows.mul_(self.norms.reciprocal())


def read_blocks(source: Source, what: str, on_invalid: Callable[[int], None] | None = None) -> Iterator[Block]:
    """Read a source once, in float64.

    Args:
        source: rows in any accepted form; raw rows need not be normalised.
        what: name of the source in error messages.
        on_invalid: leave out rows without a direction, and call this with how many each time; None: they are an error.

    Raises:
        ValueError: a zero, NaN or infinite row (named by its number in the source), chunks of different width, or a
            source that cannot be read again.
    """
    done = 0
    width: int | None = None
    for array in arrays(source, what):
        check_array(array, what)
        width = array.shape[1] if width is None else width
        if array.shape[1] != width:
            raise ValueError(f"{what} row {done} has {array.shape[1]} columns but the rows before it {width}")
        for start, block in blocks(array, torch.float64):
            first = done + start
            numbers = np.arange(first, first + len(block), dtype=np.uint64)
            norms, invalid = _norms(block)
            if invalid is not None and on_invalid is None:
                _refuse(block, invalid, what, first)
            elif invalid is not None and on_invalid is not None:
                on_invalid(int(invalid.sum()))
                block, numbers = block[~invalid], numbers[~invalid.cpu().numpy()]
                norms, _ = _norms(block)
            yield Block(numbers, block, norms)
        done += len(array)


def to_sphere(rows: torch.Tensor, what: str, start: int = 0) -> torch.Tensor:
    """Divide each row by its norm, in place.

    Args:
        rows: float32 or float64 [n, d], overwritten.
        what: name of the rows in error messages.
        start: number of the first row in error messages.

    Returns:
        The same tensor, with rows of norm one.

    Raises:
        ValueError: a row that is zero or has a NaN or infinite entry.
    """
    norms, invalid = _norms(rows)
    if invalid is not None:
        _refuse(rows, invalid, what, start)
    return rows.mul_(norms.reciprocal_())


def _norms(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Norms of rows [n, 1]; or, second, which have no direction: are zero or have a NaN or infinite entry, bool [n].

    Squares of entries near the ends of the exponent range overflow or vanish: such rows are brought to order one first,
    in place, unless there is one without a direction.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    least = torch.finfo(rows.dtype).tiny ** 0.25
    if not len(rows) or _within(norms, least):
        return norms, None
    safe = torch.isfinite(norms) & (norms > least)
    peaks = rows.abs().amax(dim=1, keepdim=True)
    valid = torch.isfinite(peaks) & (peaks > 0)
    if not bool(valid.all()):
        return norms, ~valid.flatten()
    rows.div_(torch.where(safe, torch.ones_like(peaks), peaks))
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True), None


def _within(norms: torch.Tensor, least: float) -> bool:
    """Whether all norms are finite and above the least; two numbers say so, which no NaN does."""
    lowest, highest = (float(one) for one in torch.aminmax(norms))
    return lowest > least and highest < math.inf


def _refuse(rows: torch.Tensor, invalid: torch.Tensor, what: str, start: int) -> NoReturn:
    """Raises ValueError about the first of the rows that have no direction."""
    row = int(invalid.nonzero()[0])
    problem = "has a NaN or infinite entry" if bool(rows[row].any()) else "is zero"
    raise ValueError(f"{what} row {start + row} {problem}, so it has no direction: remove it or embed it again")


class MappedOntoZeroError(ValueError):
    """A map gave a row of a block no direction; `naming` says which row that is to the caller.

    Args:
        row: its number within the block.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} of a block is mapped onto the zero vector, which has no direction")
        self.row = row


@contextmanager
def naming(what: str, numbers: Sequence[int] | np.ndarray) -> Iterator[None]:
    """While a block [n, d] is mapped: call a row that ends on the zero vector by its number in the source.

    Args:
        what: name of the source in error messages.
        numbers: of the n rows of the block.

    Raises:
        ValueError: a row was mapped onto the zero vector.
    """
    try:
        yield
    except MappedOntoZeroError as error:
        raise ValueError(
            f"{what} row {numbers[error.row]} is mapped onto the zero vector, which has no direction: choose another "
            f"alignment"
        ) from None


def renormalise(rows: torch.Tensor) -> torch.Tensor:
    """Put mapped rows, whose entries are of order one, back on the sphere, in place.

    Raises:
        MappedOntoZeroError: a row was mapped onto the origin.
    """
    return rows.mul_(_reciprocal_norms(rows))


def renormalise_and_add(rows: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """norm(row) + vector for each row [n, d], in place and in one pass after that for the norms.

    Raises:
        MappedOntoZeroError: a row was mapped onto the origin.
    """
    return torch.addcmul(vector, rows, _reciprocal_norms(rows), out=rows)


def _reciprocal_norms(rows: torch.Tensor) -> torch.Tensor:
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not bool(norms.all()):
        raise MappedOntoZeroError(int((norms == 0).flatten().nonzero()[0]))
    return norms.reciprocal_()
