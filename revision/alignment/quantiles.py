"""Quantiles of many streams of radii at once, in constant memory.

Each stream is counted into bins whose edges grow by a fixed factor (as in DDSketch: Masson, Rim and Lee, 2019, but with
bins for the whole range that unit vectors can have, so that none has to be collapsed). Counts are integers: they add up
to the same numbers whatever the chunks, the order and the processes. A quantile is read off within the bin that holds
it, so its relative error is at most that factor less one, whatever the distribution.
"""

from __future__ import annotations

import math

import torch

RELATIVE_ERROR = 1e-3
SMALLEST = 1e-6  # radii below share one bin from 0 on: absolute error there
LARGEST = 2.0  # no two points of the unit ball are farther apart
BINS = math.ceil(math.log(LARGEST / SMALLEST) / math.log1p(RELATIVE_ERROR)) + 1


class RadiusSketch:
    """Counts of radii in `streams` streams: int64 [streams, BINS], about 116 KB a stream.

    Args:
        streams: how many.
    """

    def __init__(self, streams: int) -> None:
        self.counts = torch.zeros(streams, BINS, dtype=torch.int64)

    def add(self, radii: torch.Tensor) -> None:
        """Count radii, float64 [n, streams] on any device."""
        steps = (radii / SMALLEST).log_().div_(math.log1p(RELATIVE_ERROR)).floor_().add_(1)
        bins = steps.clamp_(0, BINS - 1).long().cpu()
        bins += torch.arange(len(self.counts)) * BINS
        flat = bins.flatten()
        self.counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))

    def quantiles(self, levels: torch.Tensor) -> torch.Tensor:
        """Quantiles at levels in [0, 1], float64 [k]: float64 [streams, k], ascending along each row.

        Within a bin, the rows of the bin are taken as spread evenly; every stream holds at least one.
        """
        up_to = self.counts.cumsum(dim=1).double()
        total = up_to[:, -1:]
        assert bool((total > 0).all()), "every stream has been counted"
        wanted = (levels * total).contiguous()
        # Level 0 is the lower edge of the first bin that holds anything, not of the first bin.
        bins = torch.searchsorted(up_to, wanted.clamp_min(0.5)).clamp_max(BINS - 1)
        inside = self.counts.double().gather(1, bins)
        share = ((wanted - up_to.gather(1, bins) + inside) / inside).clamp(0, 1)
        edges = SMALLEST * torch.exp(torch.arange(BINS, dtype=torch.float64) * math.log1p(RELATIVE_ERROR))
        upper = edges[bins]
        lower = torch.where(bins > 0, edges[(bins - 1).clamp_min(0)], 0.0)
        return lower + share * (upper - lower)


def transfer(values: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """F_target^(-1)(F_source(v)) from the quantiles of both at the same levels.

    Args:
        values: [n, streams], not negative.
        source, target: [streams, k], ascending along each row, on the device and in the dtype of `values`.

    Returns:
        [n, streams]: linear between the quantiles, proportional below the first and above the last.
    """
    wanted = values.T.contiguous()
    above = torch.searchsorted(source, wanted, right=True).clamp_(1, source.shape[1] - 1)
    from_low, from_high = source.gather(1, above - 1), source.gather(1, above)
    to_low, to_high = target.gather(1, above - 1), target.gather(1, above)
    width = from_high - from_low
    share = torch.where(width > 0, (wanted - from_low) / width, 0.5)
    between = to_low + share.clamp_(0, 1) * (to_high - to_low)
    tiny = torch.finfo(values.dtype).tiny
    below, beyond = (wanted * (target[:, i, None] / source[:, i, None].clamp_min(tiny)) for i in (0, -1))
    found = torch.where(wanted < source[:, :1], below, torch.where(wanted > source[:, -1:], beyond, between))
    return found.T
