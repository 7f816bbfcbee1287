"""Arrays of `.npy` files in memory maps that hold no file descriptor, so that a store may have any number of shards."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np


def map_array(file: Path) -> np.ndarray:
    """The array of a `.npy` file, copy on write: writing to it changes no file.

    numpy's own maps keep their file open, and systems commonly allow 1024 files: of a store of thousands of shards most
    would be mapped anew for every batch, which takes a hundred times as long as reading the rows.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is no whole array of numbers in rows.
    """
    import torch  # here: whoever opens a store needs it, the layout of stores does not

    with file.open("rb") as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(opened)
        start, size = opened.tell(), opened.seek(0, 2)
    if fortran or dtype.hasobject:
        raise ValueError("it holds no numbers in rows")
    if size < start + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"it is cut off: {size} bytes")
    if not math.prod(shape):  # nothing to map
        return np.empty(shape, dtype)
    whole = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()
    return whole[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
