"""A chain of shifts in machine code: a row of half precision is read once, mapped in the cache and written once.

torch maps a block in a pass for each operation, which cost several times the reading and writing. Here each row
is widened to float32 in the nearest cache, where all else is done. Imports numba, which is the extra `compiled`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from revision.alignment.chain import Chain
from revision.alignment.rows import Array

CHUNK = 4096  # rows that a thread maps at a time
# A squared length below this share of its terms has lost digits that float32 cannot spare; the caller maps such rows.
LEAST_SQUARE = 1e-2
LEAST_NORM, LARGEST_NORM = 1e-15, 1e15  # squared norms beyond them leave the range of float32
# Sums may be taken in any order, or they could not use the width of the registers; NaN and infinity stay what they are.
REORDERED = {"reassoc", "contract", "nsz"}


def _bits_of(name: str, widen: bool) -> Any:
    """An operation between float32 and the bits of a format of 16: `half` by the processor, `bfloat` by arithmetic."""

    def half(builder: Any, value: Any) -> Any:
        """One instruction on every processor of the last ten years, for eight entries at a time."""
        if widen:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))

    def bfloat(builder: Any, value: Any) -> Any:
        """The upper half of float32, rounded to the nearest even; no NaN comes here."""
        word, sixteen = ir.IntType(32), ir.Constant(ir.IntType(32), 16)
        if widen:
            return builder.bitcast(builder.shl(builder.zext(value, word), sixteen), ir.FloatType())
        bits = builder.bitcast(value, word)
        odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(word, 1))
        rounded = builder.add(builder.add(bits, ir.Constant(word, 0x7FFF)), odd)
        return builder.trunc(builder.lshr(rounded, sixteen), ir.IntType(16))

    build = {"half": half, "bfloat": bfloat}[name]

    @intrinsic
    def operation(typing: Any, value: Any) -> Any:
        """What numba puts in the place of a call."""
        signature = types.float32(types.uint16) if widen else types.uint16(types.float32)
        return signature, lambda context, builder, signature, values: build(builder, values[0])

    return operation


def _kernel(name: str) -> Callable[..., int]:
    """Maps bits [n, d] into bits [n, d]; marks the rows that it leaves to the caller in bool [n], and counts them."""
    widen, narrow = _bits_of(name, widen=True), _bits_of(name, widen=False)

    @njit(fastmath=REORDERED, error_model="numpy", nogil=True)
    def kernel(rows: Any, target: Any, left: Any, scale: float, vectors: Any, gram: Any) -> int:
        """The arithmetic of `Chain`, a row at a time; factors in float64, entries in float32, vectors two at a time."""
        count, dim = rows.shape
        last = len(vectors) - 2
        row, products, factors = np.empty(dim, np.float32), np.empty(len(vectors)), np.zeros(len(vectors))
        remaining = 0
        for i in range(count):
            own = even = odd = np.float32(0)
            for j in range(dim):
                row[j] = widen(rows[i, j])
                own += row[j] * row[j]
                even += row[j] * vectors[0, j]
                odd += row[j] * vectors[1, j]
            norm = math.sqrt(own)
            products[0], products[1] = even, odd
            for pair in range(2, last + 1, 2):
                even = odd = np.float32(0)
                for j in range(dim):
                    even += row[j] * vectors[pair, j]
                    odd += row[j] * vectors[pair + 1, j]
                products[pair], products[pair + 1] = even, odd
            sound = LEAST_NORM < norm < LARGEST_NORM
            of_row, square = scale, scale * scale
            for step in range(len(gram)):
                inner = of_row * products[step] / norm
                for before in range(step):
                    inner += factors[before] * gram[before, step]
                terms = square + gram[step, step]
                square = terms + 2 * inner
                sound = sound and square >= LEAST_SQUARE * terms
                shrink = 1 / math.sqrt(square)
                factors[step] = 1.0
                of_row *= shrink
                for before in range(step + 1):
                    factors[before] *= shrink
                square = 1.0
            left[i] = not sound
            if not sound:
                remaining += 1
                continue
            by = np.float32(of_row / norm)
            for pair in range(0, last, 2):
                of_even, of_odd = np.float32(factors[pair]), np.float32(factors[pair + 1])
                for j in range(dim):
                    row[j] = by * row[j] + of_even * vectors[pair, j] + of_odd * vectors[pair + 1, j]
                by = np.float32(1)
            of_even, of_odd = np.float32(factors[last]), np.float32(factors[last + 1])
            for j in range(dim):
                target[i, j] = narrow(by * row[j] + of_even * vectors[last, j] + of_odd * vectors[last + 1, j])
        return remaining

    found: Callable[..., int] = kernel
    return found


KERNELS = {torch.float16: _kernel("half"), torch.bfloat16: _kernel("bfloat")}


class CompiledChain:
    """A chain for rows of half precision on the CPU.

    Args:
        chain: the map.
    """

    def __init__(self, chain: Chain) -> None:
        self._scale = chain.scale
        vectors = chain.vectors if len(chain.vectors) % 2 == 0 else torch.nn.functional.pad(chain.vectors, (0, 0, 0, 1))
        self._vectors = vectors.to(torch.float32).numpy()  # two at a time: the number is even
        self._gram = (chain.vectors @ chain.vectors.T).numpy()

    def takes(self, target: torch.Tensor) -> bool:
        """Whether rows of the dtype and on the device of `target` are its own to map."""
        return target.dtype in KERNELS and target.device.type == "cpu"

    def __call__(self, rows: Array, target: torch.Tensor) -> np.ndarray:
        """Map rows of any norm; each result depends on its own row alone.

        Args:
            rows: numpy array or CPU tensor [n, d] of half precision, in any layout and byte order.
            target: contiguous CPU tensor [n, d] of the same dtype, written.

        Returns:
            Numbers of the rows left unmapped, in order: those without a direction, or with a norm below 1e-15 or above
            1e15, or that come so close to the origin on their way that float32 loses digits.
        """
        kernel, bits = KERNELS[target.dtype], target.view(torch.uint16).numpy()
        left = np.empty(len(rows), np.bool_)

        def mapped(start: int) -> int:
            """Maps a chunk."""
            part = slice(start, start + CHUNK)
            given = _contiguous(rows[part])
            return kernel(given, bits[part], left[part], self._scale, self._vectors, self._gram)

        return np.flatnonzero(left) if sum(_in_threads(mapped, range(0, len(rows), CHUNK))) else np.empty(0, np.int64)


def _contiguous(rows: Array) -> np.ndarray:
    """Bits of the rows, uint16 [n, d], contiguous and in the processor's byte order; copied only where they are not."""
    if isinstance(rows, torch.Tensor):
        return rows.detach().contiguous().view(torch.uint16).numpy()
    return np.ascontiguousarray(rows, rows.dtype.newbyteorder("=")).view(np.uint16)


def _in_threads(work: Callable[[int], int], starts: range) -> Iterator[int]:
    """What `work` returns for each start, on as many threads as torch has; the kernel holds no lock."""
    threads = min(torch.get_num_threads(), len(starts))
    if threads < 2:
        yield from map(work, starts)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, starts)
