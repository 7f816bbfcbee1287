"""What an alignment may ask of the two sources while it is fitted: moments, and further passes over the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.distributed as dist

from revision.alignment.chain import Chain
from revision.alignment.moments import Detail, Moments, NoRowsError, all_gather, all_reduce, measure, merge_all
from revision.alignment.rows import Block, Source, naming, read_blocks

Side: TypeAlias = Literal["text", "image"]
Transform: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
NumberedTransform: TypeAlias = Callable[[torch.Tensor, np.ndarray], torch.Tensor]

# The traces of rows that differ by rounding alone stay far below this; those of any two float16 rows far above.
SMALLEST_TRACE = 1e-24


@dataclass(frozen=True)
class _Share:
    """What a process tells the others of its rows before their moments are merged."""

    count: int
    dim: int
    problem: str | None


def require_group() -> None:
    """Raises ValueError where no process group is there for shares to be merged in."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "distributed=True merges the shares of a process group, and there is none: call "
            "torch.distributed.init_process_group first, or leave distributed out"
        )


@contextmanager
def refused_together(distributed: bool) -> Iterator[None]:
    """What one process refuses inside, all refuse, so that none waits for it later.

    Raises:
        ValueError: this process's own, or the sentence of the first that has one.
    """
    if not distributed:
        yield
        return
    require_group()
    failure: ValueError | None = None
    try:
        yield
    except ValueError as error:
        failure = error
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, None if failure is None else f"process {dist.get_rank()}: {failure}")
    for problem in problems:
        if problem is not None:
            raise ValueError(problem) from failure


class Fitting:
    """Both sources, and the moments of a first pass over each.

    Args:
        text, image: the sources, as in `Alignment.fit`.
        detail: of the moments of text and image.
        distributed: this process holds a share of the rows, which may be empty, and all statistics are of all shares.
        skip_invalid: leave out rows without a direction instead of refusing them.

    Attributes:
        text, image: moments of the unit rows.
        skipped: number of rows left out, by side.

    Raises:
        ValueError: fewer than two rows on a side, different widths, an invalid row that may not be skipped, or no
            process group to share with; where shares are merged, in every process and with the sentence of the one
            whose share it concerns.
    """

    def __init__(
        self,
        text: Source,
        image: Source,
        detail: tuple[Detail, Detail] = (Detail.TRACE, Detail.TRACE),
        *,
        distributed: bool = False,
        skip_invalid: bool = False,
    ) -> None:
        self._sources: dict[Side, Source] = {"text": text, "image": image}
        if distributed:
            require_group()
        self._distributed = distributed
        self._rank = dist.get_rank() if self._distributed else 0
        self._skip_invalid = skip_invalid
        self._first_row: dict[Side, int] = {}
        self.skipped: dict[Side, int] = {"text": 0, "image": 0}
        self.text = self._first_pass("text", detail[0])
        self.image = self._first_pass("image", detail[1])
        for side, moments in (("text", self.text), ("image", self.image)):
            if moments.count < 2:
                raise ValueError(f"{side} has {moments.count} row; an alignment needs at least two on each side")
        if self.text.dim != self.image.dim:
            raise ValueError(
                f"text has {self.text.dim} columns but image {self.image.dim}: embed both with one encoder"
            )

    def blocks(self, side: Side) -> Iterator[torch.Tensor]:
        """Read this process's share of a side once more: float64 unit rows [<=b, d], free to be overwritten."""
        return (block.unit() for block in self._read(side))

    def measure(self, side: Side, transform: Transform | None = None, detail: Detail = Detail.MEAN) -> Moments:
        """Moments of a side, or of `transform` of its unit rows [n, d], in one pass; the mean alone unless told."""
        rows = self.blocks(side) if transform is None else self._mapped(side, lambda block, _: transform(block))
        return self._merged(side, lambda: measure(rows, side, detail), detail)[0]

    def measure_numbered(self, side: Side, transform: NumberedTransform) -> Moments:
        """As `measure`; `transform` gets the numbers of the rows too, uint64 [n], over all shares in rank order."""
        first = np.uint64(self._first_row[side])
        mapped = self._mapped(side, lambda block, numbers: transform(block, numbers + first))
        return self._merged(side, lambda: measure(mapped, side, Detail.MEAN), Detail.MEAN)[0]

    def mean_along(self, chain: Chain, side: Side, transform: Transform) -> torch.Tensor:
        """Mean of `transform` of the unit rows of a side, which is what `chain` says, in one pass and less time."""

        def states() -> Iterator[Moments]:
            """The mean of each block, by the chain where that is exact."""
            for block in self._read(side):
                if len(block.rows):
                    mean = chain.mean(block.rows, block.norms)
                    if mean is None:
                        with naming(self._name(side), block.numbers):
                            mean = transform(block.unit()).mean(dim=0)
                    yield Moments(len(block.rows), mean.cpu(), math.nan)

        return self._merged(side, lambda: merge_all(states(), side), Detail.MEAN)[0].mean

    def total(self, own: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all shares."""
        return torch.stack(all_gather(own)).sum(dim=0) if self._distributed else own

    def check_spread(self, what: str) -> None:
        """Refuse sides whose rows are all equal, for methods that divide by their spread.

        Raises:
            ValueError: a side has zero trace.
        """
        for side, moments in (("text", self.text), ("image", self.image)):
            if moments.trace < SMALLEST_TRACE:
                raise ValueError(f"the {side} rows are all equal, so {what} finds no scale (zero trace): add rows")

    def _first_pass(self, side: Side, detail: Detail) -> Moments:
        skipped: list[int] = []
        blocks = read_blocks(self._sources[side], self._name(side), skipped.append if self._skip_invalid else None)
        if detail is Detail.TRACE:
            states = (Moments.of_directions(block.rows, block.norms) for block in blocks if len(block.rows))
            merged, counts = self._merged(side, lambda: merge_all(states, side), detail)
        else:
            merged, counts = self._merged(side, lambda: measure((b.unit() for b in blocks), side, detail), detail)
        left_out = torch.tensor([sum(skipped)])
        skips = [int(share[0]) for share in (all_gather(left_out) if self._distributed else [left_out])]
        self._first_row[side] = sum(counts[: self._rank]) + sum(skips[: self._rank])
        self.skipped[side] = sum(skips)
        return merged

    def _read(self, side: Side) -> Iterator[Block]:
        """This process's share of a side, whose rows are numbered in the share.

        Rows that the first pass has left out and counted are left out again.
        """
        on_invalid = (lambda count: None) if self._skip_invalid else None
        return read_blocks(self._sources[side], self._name(side), on_invalid)

    def _mapped(self, side: Side, transform: NumberedTransform) -> Iterator[torch.Tensor]:
        for block in self._read(side):
            with naming(self._name(side), block.numbers):
                mapped = transform(block.unit(), block.numbers)
            yield mapped

    def _name(self, side: Side) -> str:
        """The name of this process's share in error messages: it is by the share that rows are numbered there."""
        return f"process {self._rank}'s {side}" if self._distributed else side

    def _merged(self, side: Side, take: Callable[[], Moments], detail: Detail) -> tuple[Moments, list[int]]:
        """Moments of all shares, and the number of rows in each; `take` takes those of this process's, in that detail.

        A process whose rows are refused tells the others before it stops, or they would wait for its moments for ever.
        """
        if not self._distributed:
            own = take()
            return own, [own.count]
        moments, failure = None, None
        try:
            moments = take()
        except NoRowsError:
            moments = None  # a share may be empty
        except ValueError as error:
            failure = error
        except OSError as error:
            failure = ValueError(f"{self._name(side)} cannot be read: {error}")
        share = _Share(
            count=moments.count if moments is not None else 0,
            dim=moments.dim if moments is not None else 0,
            problem=str(failure) if failure is not None else None,
        )
        dim, counts = _agreed(self._shares(share), side, failure)
        return all_reduce(moments if moments is not None else _nothing(dim, detail)), counts

    @staticmethod
    def _shares(own: _Share) -> list[_Share]:
        """The shares of all processes, in the order of their ranks."""
        shares: list[_Share] = [own] * dist.get_world_size()
        dist.all_gather_object(shares, own)
        return shares


def _agreed(shares: list[_Share], side: Side, failure: ValueError | None) -> tuple[int, list[int]]:
    """Width of the rows, and the number of them in each share; every process comes to the same.

    Raises:
        ValueError: a process has refused its rows, there are none at all, or two shares differ in width.
    """
    for share in shares:
        if share.problem is not None:
            raise ValueError(share.problem) from failure
    filled = [(rank, share.dim) for rank, share in enumerate(shares) if share.count]
    if not filled:
        raise ValueError(f"{side} holds no rows in any process; statistics need at least two")
    first, dim = filled[0]
    for rank, other in filled:
        if other != dim:
            raise ValueError(
                f"process {rank}'s {side} has {other} columns but process {first}'s {dim}: embed both with one encoder"
            )
    return dim, [share.count for share in shares]


def _nothing(dim: int, detail: Detail) -> Moments:
    """Moments of no rows, as `measure` lays them out, for merging alone."""
    columns = torch.zeros(dim, dtype=torch.float64) if detail is Detail.VARIANCES else None
    matrix = torch.zeros(dim, dim, dtype=torch.float64) if detail is Detail.COVARIANCE else None
    return Moments(0, torch.zeros(dim, dtype=torch.float64), 0.0, columns, matrix)
