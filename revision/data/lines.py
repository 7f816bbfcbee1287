"""Corpora that no process has to hold: JSON lines in a file that is mapped into memory.

As Python objects a conversation of 650 characters takes 1.9 kB, in each process anew. In a mapped file it takes its
bytes, and they lie in the page cache once for all processes of a machine, which may give them up and read them again.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from revision import folders
from revision.files import HashingFile, write_whole


class Lines:
    """JSON values of a file, by their number.

    Args:
        path: without its ending. `<path>.jsonl` holds the values, a line each; `<path>.npy` where each line begins and
            the last one ends, int64 [n + 1].

    Raises:
        OSError: one of the files is not there.
        ValueError: they are no pair.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = np.load(_starts(path), mmap_mode="r", allow_pickle=False).view(np.ndarray)
        size = _text(path).stat().st_size
        if self._starts.dtype != np.int64 or self._starts.ndim != 1 or self._starts[-1:].tolist() != [size]:
            raise ValueError(f"{_starts(path)} does not fit {_text(path)}, which has {size} bytes; delete both")
        # An empty file cannot be mapped.
        self._bytes = np.memmap(_text(path), np.uint8, "r").view(np.ndarray) if size else np.empty(0, np.uint8)

    @classmethod
    def written(cls, path: Path, values: Iterable[object]) -> Lines:
        """Writes values, one by one and in constant memory but for 8 bytes each; either file is there whole or not.

        Raises:
            ValueError: the disk is full, or cannot be written.
        """
        starts = array("q", [0])

        def write(file: HashingFile) -> None:
            """All lines."""
            for value in values:
                starts.append(starts[-1] + file.write(f"{json.dumps(value)}\n".encode()))

        with folders.writing(path, "give the same command again"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(_text(path), write)
            write_whole(_starts(path), lambda file: np.save(file, np.asarray(starts, np.int64), allow_pickle=False))
        return cls(path)

    @classmethod
    def found(cls, path: Path) -> Lines | None:
        """What lies at a path; None where that is nothing, or was not copied whole."""
        try:
            return cls(path)
        except (OSError, ValueError, EOFError):
            return None

    def __reduce__(self) -> tuple[type[Lines], tuple[Path]]:
        """Pickled for a data-loading process as a path: each process maps the files itself."""
        return Lines, (self.path,)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int, /) -> Any:
        """A value; a negative number counts from the end."""
        number = range(len(self))[index]
        return json.loads(self._bytes[self._starts[number] : self._starts[number + 1]].tobytes())

    @cached_property
    def sha256(self) -> str:
        """Of all values as JSON, without the ends of lines between them."""
        digest = hashlib.sha256()
        for line in self._each():
            digest.update(line)
        return digest.hexdigest()

    def _each(self) -> Iterator[memoryview]:
        view, starts = self._bytes.data, self._starts.data
        return (view[starts[number] : starts[number + 1] - 1] for number in range(len(self)))


def _text(path: Path) -> Path:
    return path.with_name(f"{path.name}.jsonl")


def _starts(path: Path) -> Path:
    return path.with_name(f"{path.name}.npy")
