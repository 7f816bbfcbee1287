"""What the values of a pickle are read as: descriptions that say where in the file their bytes lie."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np


class DamagedError(Exception):
    """A value that is not what the file says it is; whoever knows the file's name says so."""


class Encoding(Enum):
    """How a text or a run of bytes lies in the file."""

    text = auto()  # UTF-8
    raw = auto()  # the bytes themselves
    latin = auto()  # bytes as protocol 2 knows them: as characters of Latin-1, those in UTF-8


@dataclass(slots=True)  # not frozen: millions of them are made, and that would double the time
class Span:
    """A text or bytes: where they lie in the file."""

    start: int
    stop: int
    encoding: Encoding

    def text(self, data: mmap.mmap) -> str:
        """As a text; DamagedError where it is none."""
        try:
            return data[self.start : self.stop].decode("utf-8", "surrogatepass")
        except UnicodeError as error:
            raise DamagedError(f"a text near byte {self.start:,} is not UTF-8") from error

    def content(self, data: mmap.mmap) -> bytes:
        """As bytes; DamagedError where they are not written as such."""
        found = data[self.start : self.stop]
        try:
            return found.decode("utf-8").encode("latin-1") if self.encoding is Encoding.latin else found
        except UnicodeError as error:
            raise DamagedError(f"the bytes near byte {self.start:,} are not written as protocol 2 does") from error


@dataclass(slots=True)
class Dtype:
    """A dtype being described: a letter and a size, then its byte order."""

    code: str
    order: str = "="

    def resolve(self) -> np.dtype:
        """The numpy dtype."""
        return np.dtype(self.order + self.code)


@dataclass(slots=True)
class Array:
    """An array: its dtype and shape, and where its bytes lie."""

    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: Span | None = None

    def load(self, data: mmap.mmap) -> np.ndarray:
        """The array; a view of the file where its bytes lie there as they are.

        Raises:
            DamagedError: it has other bytes than its shape and dtype ask for.
        """
        assert self.dtype is not None and self.data is not None
        count = math.prod(self.shape)
        if self.data.encoding is Encoding.raw:
            flat = np.frombuffer(data, self.dtype, count, self.data.start)
        else:
            content = self.data.content(data)
            if len(content) != count * self.dtype.itemsize:
                raise DamagedError(f"an array of shape {self.shape} has {len(content):,} bytes")
            flat = np.frombuffer(content, self.dtype, count)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")
