"""The fixed frame: how the modality gap moves while a dual encoder trains, seen from axes frozen at one step.

ReVision v3, Sec. 3. A reference step t0 splits the space into U, where embeddings vary, and its complement V; both are
kept from then on. The gap of a pair, Delta = e_x - e_y with mean m, is the sum of beta = P_U m, gamma = P_V m and the
zero-mean residuals delta = P_U (Delta - m) and zeta = P_V (Delta - m).

Rows are unit vectors [n, d], row i of images and of texts one pair; all arithmetic is float64. The paper leaves open
how several of its quantities are computed; what is done here is said at each function and in docs/geometry-frame.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from revision.geometry.measures import condition_number, covariance, effective_rank, without_zeros


@dataclass(frozen=True)
class Frame:
    """Orthonormal axes of U and V, float64.

    Attributes:
        u: [d, r], columns span U, those of most variance first.
        v: [d, d - r], columns span V.
        energy: share of the trace of Sigma(t0) that lies in U.
    """

    u: np.ndarray
    v: np.ndarray
    energy: float


@dataclass(frozen=True)
class GapParts:
    """The gap in the coordinates of a frame, float64.

    Attributes:
        beta: [r], mean gap in U: the principal mean bias.
        gamma: [d - r], mean gap in V: the passive orthogonal bias.
        delta: [n, r], residuals in U, of mean zero.
        zeta: [n, d - r], residuals in V, of mean zero.
    """

    beta: np.ndarray
    gamma: np.ndarray
    delta: np.ndarray
    zeta: np.ndarray


def eigenbasis(images: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [d], largest first, and eigenvectors [d, d] in columns of Sigma = Cov(e_x) + Cov(e_y)."""
    values, vectors = np.linalg.eigh(covariance(images) + covariance(texts))
    return values[::-1].clip(min=0.0), vectors[:, ::-1]


def fit_frame(images: np.ndarray, texts: np.ndarray, energy: float) -> Frame:
    """The frame of a reference step.

    Args:
        images, texts: unit rows [n, d] of the probe pairs.
        energy: share of the trace of Sigma that U must hold, above 0 and below 1. The paper has such a threshold and
            does not state it; r is the smallest number of axes that reaches it, and at most d - 1.

    Raises:
        ValueError: the rows of both sides do not vary, or have fewer than two coordinates.
    """
    values, vectors = eigenbasis(images, texts)
    total = values.sum()
    if len(values) < 2 or not total > 1e-24:
        raise ValueError(
            f"a frame needs embeddings of at least 2 coordinates that differ; these have {len(values)} coordinates and "
            f"a variance of {total:.1g}: give more and other probe pairs"
        )
    held = np.cumsum(values) / total
    rank = min(int(np.searchsorted(held, energy)) + 1, len(values) - 1)
    return Frame(u=vectors[:, :rank], v=vectors[:, rank:], energy=float(held[rank - 1]))


def decompose(images: np.ndarray, texts: np.ndarray, frame: Frame) -> GapParts:
    """Beta, gamma, delta and zeta of the gaps of n pairs."""
    gaps = images.astype(np.float64) - texts
    mean = gaps.mean(axis=0)
    residuals = gaps - mean
    return GapParts(mean @ frame.u, mean @ frame.v, residuals @ frame.u, residuals @ frame.v)


def sine_of_largest_angle(present: np.ndarray, frame: Frame) -> float:
    """sin theta of the largest principal angle between U and another subspace of its dimension.

    It is the spectral norm of P_V on that subspace, which stays exact where the angle is small.

    Args:
        present: [d, r], orthonormal columns.
    """
    return float(np.linalg.norm(frame.v.T @ present, ord=2).clip(max=1.0))


def contrastive_gradients(images: np.ndarray, texts: np.ndarray, logit_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the symmetric InfoNCE loss of one batch with respect to its unit vectors.

    They are the Euclidean ones: not projected onto the tangent of the sphere, since it is these that lie in the span of
    the other side's embeddings, which the paper's bound needs.

    Args:
        images, texts: unit rows [n, d]; row i of both is the pair i, all others are negatives.
        logit_scale: factor on the cosines (the inverse temperature).

    Returns:
        Gradients by the images and by the texts, float64 [n, d] each.
    """
    x, y = images.astype(np.float64), texts.astype(np.float64)
    logits = logit_scale * x @ y.T
    # Mean of both directions: each pulls pair i together by one and pushes by its softmax.
    pull = (_softmax(logits, axis=1) + _softmax(logits, axis=0)) / 2 - np.eye(len(x))
    pull *= logit_scale / len(x)
    return pull @ y, pull.T @ x


def share_outside(rows: np.ndarray, axes: np.ndarray) -> float | None:
    """Root-mean-square share of rows [n, d] in the span of `axes`, orthonormal columns [d, k]: sqrt(E|P g|^2 / E|g|^2).

    With the axes of V this is the leakage of gradients out of U, to be held against sin theta: a gradient in the
    subspace of the present step, U_t, has ||P_V g|| / ||g|| <= sin theta. None where all rows are zero.
    """
    total = np.square(rows, dtype=np.float64).sum()
    return None if total == 0 else float(np.sqrt(np.square(rows @ axes).sum() / total))


@dataclass(frozen=True)
class Spread:
    """How rows [n, k] vary, decomposed once; float64.

    Attributes:
        covariance: [k, k].
        eigenvalues: largest first, of those that sampling and rounding leave; none where all rows are equal.
        first: [k], the eigenvector of the largest.
    """

    covariance: np.ndarray
    eigenvalues: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> Spread:
        """Of rows [n, k]."""
        sigma = covariance(rows)
        values, vectors = np.linalg.eigh(sigma)
        return cls(sigma, without_zeros(values, len(rows)), vectors[:, -1])

    @property
    def condition_number(self) -> float | None:
        """Largest over smallest eigenvalue; the paper calls its own "effective" and does not say by what."""
        return condition_number(self.eigenvalues) if len(self.eigenvalues) else None

    @property
    def effective_rank(self) -> float | None:
        """As `measures.effective_rank`."""
        return effective_rank(self.eigenvalues) if len(self.eigenvalues) else None

    def angle_to_first_axis(self, bias: np.ndarray) -> float | None:
        """Degrees, 0 to 90, of a vector [k] and the first eigenvector, which has no sign. None: a zero vector."""
        along = cosine(bias, self.first)
        return None if along is None else float(np.degrees(np.arccos(abs(along))))


def eigenvalue_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """rho_eig: Pearson correlation of the sorted eigenvalues of two covariances [r, r].

    Two falling sequences always correlate to some degree, so 0 is not what unrelated spectra give. None for fewer than
    three eigenvalues, or where those of one side are all equal.
    """
    a, b = np.linalg.eigvalsh(first), np.linalg.eigvalsh(second)
    return None if len(a) < 3 else cosine(a - a.mean(), b - b.mean())


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cosine of two vectors; None where one is zero."""
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return None if lengths == 0 else float((a @ b / lengths).clip(-1.0, 1.0))


def _softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))
