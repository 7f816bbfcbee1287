"""Mean, trace and covariance of rows that stream by: mergeable, exact to float64, the same whatever the chunks.

Two sets of rows with counts n_a, n_b, means m_a, m_b and scatters S_a, S_b (sums of squared distances to the own mean)
have together the mean m_a + (n_b / n) (m_b - m_a) and the scatter S_a + S_b + (n_a n_b / n) ||m_b - m_a||^2
(Chan, Golub and LeVeque, 1983). Each block is centred before it is squared, so nothing cancels: a cloud that is narrow
and far from the origin keeps all its digits, which E||e||^2 - ||m||^2 would lose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import chain

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Moments:
    """Statistics of `count` rows of width d.

    Attributes:
        count: number of rows.
        mean: float64 [d] on the CPU.
        scatter: sum over rows of the squared distance to the mean.
        scatter_matrix: float64 [d, d] on the CPU, sum over rows of the outer product of the deviation with itself; None
            where it was not asked for.
    """

    count: int
    mean: torch.Tensor
    scatter: float
    scatter_matrix: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: torch.Tensor, covariance: bool = False) -> Moments:
        """Moments of one block, float64 [n >= 1, d] on any device, which is overwritten.

        A second block of this size, allocated and released each time, would cost several times the arithmetic.
        """
        mean = rows.mean(dim=0)
        centred = rows.sub_(mean)
        flat = centred.view(-1)
        matrix = (centred.T @ centred).cpu() if covariance else None
        return cls(len(rows), mean.cpu(), float(flat @ flat), matrix)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        count = self.count + other.count
        apart = other.mean - self.mean
        weight = self.count * other.count / count
        matrix = None
        if self.scatter_matrix is not None and other.scatter_matrix is not None:
            matrix = self.scatter_matrix + other.scatter_matrix + weight * torch.outer(apart, apart)
        mean = self.mean + apart * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + weight * float(apart @ apart), matrix)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return len(self.mean)

    @property
    def trace(self) -> float:
        """Trace of the covariance, E||e - mu||^2 (divided by n, as in ReVision v3, Sec. 4)."""
        return self.scatter / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance matrix, float64 [d, d], divided by n.

        Raises:
            ValueError: the moments were taken without covariance.
        """
        if self.scatter_matrix is None:
            raise ValueError("these moments hold no covariance: take them with covariance=True")
        return self.scatter_matrix / self.count


def merge_all(states: Iterable[Moments]) -> Moments:
    """Merge any number of moments, at least one, from left to right."""
    return reduce(Moments.merge, states)


def measure(blocks: Iterable[torch.Tensor], what: str = "rows", covariance: bool = False) -> Moments:
    """Moments of all rows in a stream of blocks, in constant memory.

    Args:
        blocks: float64 [n_i, d] tensors, on any device; they are overwritten.
        what: name of the rows in error messages.
        covariance: also take the full covariance, which costs d times more arithmetic and d^2 memory.

    Raises:
        ValueError: there is no row at all.
    """
    states = (Moments.of(block, covariance) for block in blocks if len(block))
    first = next(states, None)
    if first is None:
        raise ValueError(f"{what} holds no rows; statistics need at least two")
    return merge_all(chain([first], states))


def all_reduce(moments: Moments) -> Moments:
    """Merge the moments of all processes of the default `torch.distributed` group.

    Every process gives the moments of its own rows and gets the same result, bit for bit, since all merge in rank
    order. Without an initialised group the moments come back as they are.
    """
    if not dist.is_initialized():
        return moments
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    head = torch.tensor([moments.count, moments.scatter], dtype=torch.float64)
    parts = [head, moments.mean]
    if moments.scatter_matrix is not None:
        parts.append(moments.scatter_matrix.flatten())
    own = torch.cat(parts).to(device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return merge_all(_unpack(state.cpu(), moments.dim) for state in gathered)


def _unpack(state: torch.Tensor, dim: int) -> Moments:
    """Undo the flattening of `all_reduce`."""
    matrix = state[2 + dim :].reshape(dim, dim) if len(state) > 2 + dim else None
    return Moments(int(state[0]), state[2 : 2 + dim], float(state[1]), matrix)
