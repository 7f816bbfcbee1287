"""What an alignment may ask of the two sources while it is fitted: moments, and further passes over the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np
import torch

from revision.alignment.moments import Detail, Moments, all_gather, all_reduce, measure
from revision.alignment.rows import Source, numbered_blocks

Side: TypeAlias = Literal["text", "image"]
Transform: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
NumberedTransform: TypeAlias = Callable[[torch.Tensor, np.ndarray], torch.Tensor]

# The traces of rows that differ by rounding alone stay far below this; those of any two float16 rows far above.
SMALLEST_TRACE = 1e-24


class Fitting:
    """Both sources, and the moments of a first pass over each.

    Args:
        text, image: the sources, as in `Alignment.fit`.
        detail: of the moments of text and image.
        distributed: this process holds a share of the rows, and all statistics are of all shares.
        skip_invalid: leave out rows without a direction instead of refusing them.

    Attributes:
        text, image: moments of the unit rows.
        skipped: number of rows left out, by side.

    Raises:
        ValueError: fewer than two rows on a side, different widths, or an invalid row that may not be skipped.
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
        self._distributed = distributed
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
        return (block for _, block in numbered_blocks(self._sources[side], side, self._on_invalid()))

    def measure(self, side: Side, transform: Transform | None = None, detail: Detail = Detail.TRACE) -> Moments:
        """Moments of a side, or of what `transform` makes of its unit rows [n, d]; one pass."""
        blocks = self.blocks(side)
        return self._merged(measure(blocks if transform is None else map(transform, blocks), side, detail))

    def measure_numbered(self, side: Side, transform: NumberedTransform) -> Moments:
        """As `measure`; `transform` gets the numbers of the rows too, uint64 [n], over all shares in rank order."""
        first = np.uint64(self._first_row[side])
        blocks = numbered_blocks(self._sources[side], side, self._on_invalid())
        return self._merged(measure((transform(block, numbers + first) for numbers, block in blocks), side))

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
        on_invalid = skipped.append if self._skip_invalid else None
        own = measure((block for _, block in numbered_blocks(self._sources[side], side, on_invalid)), side, detail)
        counts = torch.tensor([own.count + sum(skipped), sum(skipped)])
        shares = all_gather(counts) if self._distributed else [counts]
        rank = torch.distributed.get_rank() if self._distributed and torch.distributed.is_initialized() else 0
        self._first_row[side] = sum(int(share[0]) for share in shares[:rank])
        self.skipped[side] = sum(int(share[1]) for share in shares)
        return self._merged(own)

    def _merged(self, moments: Moments) -> Moments:
        return all_reduce(moments) if self._distributed else moments

    def _on_invalid(self) -> Callable[[int], None] | None:
        """Later passes leave out the same rows as the first, which has counted them."""
        return (lambda count: None) if self._skip_invalid else None
