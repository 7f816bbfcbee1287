"""Covariances: powers, the frame of the joint spectrum, the map between two Gaussians, and estimates of shrinkage.

All matrices are symmetric float64 [d, d] on the CPU.
"""

from __future__ import annotations

import math

import torch

from revision.alignment.fitting import Fitting


def power(matrix: torch.Tensor, exponent: float, what: str = "the matrix") -> torch.Tensor:
    """A positive semi-definite matrix to a real power, through its eigenvectors.

    Raises:
        ValueError: a negative power of a matrix that is singular to float64.
    """
    return powers(matrix, (exponent,), what)[0]


def powers(matrix: torch.Tensor, exponents: tuple[float, ...], what: str = "the matrix") -> list[torch.Tensor]:
    """Several powers of one matrix, for one decomposition; as `power`."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = float(values[-1]) * len(values) * torch.finfo(values.dtype).eps
    if min(exponents) < 0 and float(values[0]) <= floor:
        rank = int((values > floor).sum())
        raise ValueError(
            f"{what} is singular (rank {rank} of {len(values)}), so it has no inverse: set ridge above 0, or fit on "
            f"more rows than columns"
        )
    # Eigenvalues at the rounding error of the largest are zeros; their roots would not be small any more.
    values = torch.where(values > floor, values, 0.0)
    return [(vectors * values.pow(exponent)) @ vectors.T for exponent in exponents]


def positive_part(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest positive semi-definite matrix in the Frobenius norm, and the smallest in trace that is above it."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0)) @ vectors.T


def ridged(matrix: torch.Tensor, amount: float) -> torch.Tensor:
    """matrix + amount I."""
    return matrix + amount * torch.eye(len(matrix), dtype=matrix.dtype)


def transport(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The symmetric positive A with A source A = target: optimal transport between centred Gaussians.

    A = S^(-1/2) (S^(1/2) T S^(1/2))^(1/2) S^(-1/2) (Knott and Smith, 1984; Olkin and Pukelsheim, 1982).

    Raises:
        ValueError: the source is singular.
    """
    root, inverse = powers(source, (0.5, -0.5), "the covariance of the text rows")
    found = inverse @ power(root @ target @ root, 0.5) @ inverse
    return (found + found.T) / 2


def frame(fitting: Fitting, rank: int | None, energy: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the space by the spectrum of Sigma_y + Sigma_x (ReVision v3, Sec. 3).

    Args:
        fitting: with the covariances of both sides.
        rank: dimension r of U; None: the smallest whose eigenvalues hold a share `energy` of the trace.
        energy: that share.

    Returns:
        Orthonormal bases U [d, r] of the leading eigenvectors in descending order, and V [d, d - r] of the rest.

    Raises:
        ValueError: a rank above d.
    """
    values, vectors = torch.linalg.eigh(fitting.text.covariance + fitting.image.covariance)
    vectors, dim = vectors.flip(1), len(values)
    if rank is None:
        shares = values.flip(0).clamp_min(0).cumsum(0) / values.clamp_min(0).sum()
        rank = min(dim, int((shares < energy * (1 - 1e-12)).sum()) + 1)
    if rank > dim:
        raise ValueError(f"rank={rank} exceeds the width {dim} of the rows: lower it, or set it to None to use energy")
    return vectors[:, :rank].contiguous(), vectors[:, rank:].contiguous()


def check_frame(rank: int | None, energy: float) -> None:
    """Refuse a rank below one and an energy that is not a share.

    Raises:
        ValueError: either of them.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank} must be at least 1; None takes it from energy")
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy} must be a share of the trace, above 0 and at most 1")


def check_ridge(ridge: float) -> None:
    """Refuse a ridge that is negative or not finite.

    Raises:
        ValueError: either of them.
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge={ridge} must be a share of the mean variance, not below zero")


def restricted(matrix: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """B^T matrix B: a covariance in the coordinates of a basis [d, k], symmetric to the last bit."""
    found = basis.T @ matrix @ basis
    return (found + found.T) / 2
