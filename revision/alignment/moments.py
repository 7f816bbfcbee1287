"""Mean, trace, variances and covariance of rows that stream by: mergeable, exact to float64, whatever the chunks.

Two sets of rows with counts n_a, n_b, means m_a, m_b and scatters S_a, S_b (sums of squared distances to the own mean)
have together the mean m_a + (n_b / n) (m_b - m_a) and the scatter S_a + S_b + (n_a n_b / n) ||m_b - m_a||^2
(Chan, Golub and LeVeque, 1983), and alike for each column and for the matrix of products. A block is centred before it
is squared, so nothing cancels: a cloud that is narrow and far from the origin keeps all its digits, which
E||e||^2 - ||m||^2 would lose. Only where the trace alone is asked for, and a block is so wide that next to nothing can
cancel, is that difference taken, since it saves a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import reduce

import torch
import torch.distributed as dist


class Detail(IntEnum):
    """How much of the second moments is taken: nothing, one number, one for each column, or the full matrix."""

    MEAN = 0
    TRACE = 1
    VARIANCES = 2
    COVARIANCE = 3


# The share of E||e||^2 that the trace has to be for E||e||^2 - ||m||^2 to lose less than a digit.
WIDE = 1 / 8


@dataclass(frozen=True)
class Moments:
    """Statistics of `count` rows of width d.

    Attributes:
        count: number of rows.
        mean: float64 [d] on the CPU.
        scatter: sum over rows of the squared distance to the mean; NaN when taken with Detail.MEAN.
        column_scatter: float64 [d] on the CPU, the same sum for each column; None unless taken with Detail.VARIANCES.
        scatter_matrix: float64 [d, d] on the CPU, sum over rows of the outer product of the deviation with itself; None
            unless taken with Detail.COVARIANCE.
    """

    count: int
    mean: torch.Tensor
    scatter: float
    column_scatter: torch.Tensor | None = None
    scatter_matrix: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: torch.Tensor, detail: Detail = Detail.TRACE) -> Moments:
        """Moments of one block, float64 [n >= 1, d] on any device, which may be overwritten.

        A second block of this size, allocated and released each time, would cost several times the arithmetic.
        """
        mean = rows.mean(dim=0)
        if detail is Detail.MEAN:
            return cls(len(rows), mean.cpu(), math.nan)
        if detail is Detail.TRACE:
            return cls(len(rows), mean.cpu(), _scatter(rows, mean))
        centred = rows.sub_(mean)
        columns = torch.linalg.vector_norm(centred, dim=0).square().cpu() if detail is Detail.VARIANCES else None
        matrix = (centred.T @ centred).cpu() if detail is Detail.COVARIANCE else None
        return cls(len(rows), mean.cpu(), _squares(centred), columns, matrix)

    @classmethod
    def of_directions(cls, rows: torch.Tensor, norms: torch.Tensor) -> Moments:
        """Mean and trace of rows / norms, float64 [n >= 1, d] and [n, 1], without making them where that can be helped.

        Each counts one towards the sum of squares. The rows may be overwritten.
        """
        mean = torch.mv(rows.T, norms[:, 0].reciprocal()) / len(rows)
        scatter = len(rows) * (1.0 - float(mean @ mean))
        if scatter <= WIDE * len(rows):
            return cls.of(rows.mul_(norms.reciprocal()))
        return cls(len(rows), mean.cpu(), scatter)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together, in the detail that both have."""
        count = self.count + other.count
        apart = other.mean - self.mean
        weight = self.count * other.count / count
        columns = matrix = None
        if self.column_scatter is not None and other.column_scatter is not None:
            columns = self.column_scatter + other.column_scatter + weight * apart.square()
        if self.scatter_matrix is not None and other.scatter_matrix is not None:
            matrix = self.scatter_matrix + other.scatter_matrix + weight * torch.outer(apart, apart)
        mean = self.mean + apart * (other.count / count)
        scatter = self.scatter + other.scatter + weight * float(apart @ apart)
        return Moments(count, mean, scatter, columns, matrix)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return len(self.mean)

    @property
    def trace(self) -> float:
        """Trace of the covariance, E||e - mu||^2 (divided by n, as in ReVision v3, Sec. 4).

        Raises:
            ValueError: the moments were taken in less detail.
        """
        if math.isnan(self.scatter):
            raise ValueError("these moments hold no trace: take them with detail=Detail.TRACE")
        return self.scatter / self.count

    @property
    def variances(self) -> torch.Tensor:
        """Variance of each column, float64 [d], divided by n.

        Raises:
            ValueError: the moments were taken in less detail.
        """
        if self.scatter_matrix is not None:
            return self.scatter_matrix.diagonal() / self.count
        if self.column_scatter is None:
            raise ValueError("these moments hold no variances: take them with detail=Detail.VARIANCES")
        return self.column_scatter / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance matrix, float64 [d, d], divided by n.

        Raises:
            ValueError: the moments were taken in less detail.
        """
        if self.scatter_matrix is None:
            raise ValueError("these moments hold no covariance: take them with detail=Detail.COVARIANCE")
        return self.scatter_matrix / self.count

    def without_detail(self) -> Moments:
        """Count, mean and scatter alone."""
        return replace(self, column_scatter=None, scatter_matrix=None)


class NoRowsError(ValueError):
    """There is nothing to take moments of.

    Args:
        what: name of the rows.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} holds no rows; statistics need at least two")


def measure(blocks: Iterable[torch.Tensor], what: str = "rows", detail: Detail = Detail.TRACE) -> Moments:
    """Moments of all rows in a stream of blocks, in constant memory.

    Args:
        blocks: float64 [n_i, d] tensors, on any device; they may be overwritten.
        what: name of the rows in error messages.
        detail: the covariance costs d times more arithmetic than the trace, and d^2 memory.

    Raises:
        NoRowsError: there is no row at all.
    """
    total: Moments | None = None
    matrix: torch.Tensor | None = None
    # The matrix is added to in place: merging would write it three times for each block of a few hundred rows. Taking
    # variances is next to nothing beside it, and leaves the block centred.
    lesser = min(detail, Detail.VARIANCES)
    for block in blocks:
        if not len(block):
            continue
        state = Moments.of(block, lesser)
        if detail is Detail.COVARIANCE:
            matrix = _add_products(matrix, block)
            if total is not None:
                apart = state.mean - total.mean
                matrix.addr_(apart, apart, alpha=total.count * state.count / (total.count + state.count))
        total = state if total is None else total.merge(state)
    if total is None:
        raise NoRowsError(what)
    return total if matrix is None else replace(total, column_scatter=None, scatter_matrix=matrix)


def _squares(rows: torch.Tensor) -> float:
    """Sum of the squares of all entries."""
    flat = rows.reshape(-1)
    return float(flat @ flat)


def _scatter(rows: torch.Tensor, mean: torch.Tensor) -> float:
    """Sum of the squared distances to the mean; the rows may be overwritten."""
    squares = _squares(rows)
    scatter = squares - len(rows) * float(mean @ mean)
    return scatter if scatter > WIDE * squares else _squares(rows.sub_(mean))


def _add_products(matrix: torch.Tensor | None, centred: torch.Tensor) -> torch.Tensor:
    """matrix + centred^T centred, on the CPU and in place."""
    if matrix is None:
        return (centred.T @ centred).cpu()
    if centred.device.type == "cpu":
        return matrix.addmm_(centred.T, centred)
    return matrix.add_((centred.T @ centred).cpu())


def merge_all(states: Iterable[Moments], what: str = "rows") -> Moments:
    """Merge any number of moments from left to right; NoRowsError, which names the rows, if there are none."""
    following = iter(states)
    first = next(following, None)
    if first is None:
        raise NoRowsError(what)
    return reduce(Moments.merge, following, first)


def all_reduce(moments: Moments) -> Moments:
    """Merge the moments of all processes of the default `torch.distributed` group.

    Every process gives the moments of its own rows and gets the same result, bit for bit, since all merge in rank
    order. Moments of no rows (all zeros) count for nothing, but not those of all processes may be such. Without an
    initialised group the moments come back as they are.
    """
    if not dist.is_initialized():
        return moments
    head = torch.tensor([moments.count, moments.scatter], dtype=torch.float64)
    extra = [part.flatten() for part in (moments.column_scatter, moments.scatter_matrix) if part is not None]
    states = (_unpack(state, moments.dim) for state in all_gather(torch.cat([head, moments.mean, *extra])))
    return merge_all(state for state in states if state.count)


def all_gather(own: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of all processes of the default group in rank order, on the CPU; one's own without a group."""
    if not dist.is_initialized():
        return [own]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    own = own.to(device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return [state.cpu() for state in gathered]


def _unpack(state: torch.Tensor, dim: int) -> Moments:
    """Undo the flattening of `all_reduce`; the length says which detail there is (for d = 1 the two are the same)."""
    extra = state[2 + dim :]
    columns = extra if len(extra) == dim else None
    matrix = extra.reshape(dim, dim) if len(extra) == dim * dim else None
    return Moments(int(state[0]), state[2 : 2 + dim], float(state[1]), columns, matrix)
