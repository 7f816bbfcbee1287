"""What a measure that calls dot products cosines must hold of its rows."""

from __future__ import annotations

import numpy as np

ROUNDING = 0.01  # on squared norms: float16 entries leave a thousandth


def require_unit(**sides: np.ndarray) -> None:
    """Hold that rows of all sides, by name, lie on one unit sphere.

    Raises:
        ValueError: an array that is not [n, d], rows of different width, or a row that is not of norm one.
    """
    (first, rows), *_ = sides.items()
    for name, side in sides.items():
        if side.ndim != 2:
            raise ValueError(f"{name} has shape {list(side.shape)}; rows must be [n, d]")
        if side.shape[1] != rows.shape[1]:
            raise ValueError(
                f"{name} has {side.shape[1]} columns but {first} {rows.shape[1]}: give embeddings of one dual encoder"
            )
        squares = np.einsum("nd,nd->n", side, side, dtype=np.float64 if side.dtype == np.float64 else np.float32)
        wrong = np.flatnonzero(~(np.abs(squares - 1) < ROUNDING))  # also where it is no number
        if len(wrong):
            raise ValueError(
                f"{name} row {wrong[0]} has norm {np.sqrt(squares[wrong[0]]):.4g}, and cosines are measured between "
                f"rows of norm one: divide each row by its norm first"
            )
