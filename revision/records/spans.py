"""Which rows of a location are wanted: a process that embeds some of the shards reads the bytes of no others."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise


class Spans:
    """Row numbers from 0 on.

    Args:
        ranges: the wanted numbers, in steps of 1, in ascending order and without overlap; empty ranges are left out.
    """

    def __init__(self, ranges: Iterable[range]) -> None:
        self._ranges = [one for one in ranges if one]
        self._stops = [one.stop for one in self._ranges]
        assert all(one.step == 1 for one in self._ranges) and all(a.stop <= b.start for a, b in pairwise(self._ranges))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._ranges)

    def __contains__(self, number: int) -> bool:
        return self.touch(number, number + 1)

    def touch(self, start: int, stop: int) -> bool:
        """Whether any of the rows from `start` on, and before `stop`, is wanted."""
        at = bisect_right(self._stops, start)
        return start < stop and at < len(self._ranges) and self._ranges[at].start < stop

    def ranges(self) -> list[range]:
        """The wanted numbers, as they were given."""
        return list(self._ranges)

    @property
    def end(self) -> int:
        """The number behind the last wanted one; 0 where none is."""
        return self._stops[-1] if self._stops else 0

    def after(self, start: int) -> Spans:
        """The same rows, numbered from `start` on: those before it are left out."""
        return Spans(range(max(one.start - start, 0), one.stop - start) for one in self._ranges)


def since(number: int) -> Spans:
    """All rows but the first `number`."""
    return Spans([range(number, sys.maxsize)])


ALL = since(0)
