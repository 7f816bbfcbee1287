"""Gaussian noise that is a function of (seed, epoch, row id) alone, whatever the batches, their order and workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch

from revision.embeddings import hash_id

RowIds: TypeAlias = Sequence[int] | Sequence[str] | np.ndarray | torch.Tensor


def row_keys(row_ids: RowIds) -> np.ndarray:
    """64-bit keys of row ids, uint64 [n]: integers as they are (modulo 2^64), strings by `hash_id`.

    Raises:
        ValueError: ids that are neither integers nor strings.
    """
    if not isinstance(row_ids, np.ndarray | torch.Tensor | Iterable) or isinstance(row_ids, str):
        raise ValueError(f"row_ids is a {type(row_ids).__name__}; give one id a row, as a list or an array")
    ids = row_ids.tolist() if isinstance(row_ids, np.ndarray | torch.Tensor) else list(row_ids)
    keys = np.empty(len(ids), dtype=np.uint64)
    for row, name in enumerate(ids):
        if isinstance(name, str):
            keys[row] = hash_id(name)
        elif isinstance(name, int | np.integer):
            keys[row] = int(name) % 2**64
        else:
            raise ValueError(f"row_ids[{row}] is a {type(name).__name__}; ids are integers or strings")
    return keys


def gaussian_rows(keys: np.ndarray, dim: int, *, seed: int, epoch: int) -> np.ndarray:
    """Standard normal rows, float64 [n, dim], row i a function of (seed, epoch, keys[i]) alone.

    Philox is a counter-based generator: seed and row key are its key and the epoch is the high word of its counter, so
    no two triples share a stream, and no stream has to be run up to a position or stored.
    """
    noise = np.empty((len(keys), dim))
    for row, key in zip(noise, keys, strict=True):
        bits = np.random.Philox(key=np.array([seed, key], dtype=np.uint64), counter=[0, 0, 0, epoch])
        np.random.Generator(bits).standard_normal(out=row)
    return noise


def noise_like(rows: torch.Tensor, keys: np.ndarray, *, seed: int, epoch: int) -> torch.Tensor:
    """`gaussian_rows` of the width, dtype and device of `rows` [n, d]."""
    return torch.from_numpy(gaussian_rows(keys, rows.shape[1], seed=seed, epoch=epoch)).to(rows)


def check_noise(name: str, std: float, seed: int) -> None:
    """Refuse a spread of noise that is negative or not finite, and a seed that Philox does not take.

    Raises:
        ValueError: either of them.
    """
    if not 0 <= std < float("inf"):
        raise ValueError(f"{name}={std} must be a number not below zero; zero adds no noise")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} must not be negative and must fit 64 bits")
