"""Measures of rows that belong together: row i of the text side is of the picture in row i of the image side.

The gap of a pair, Delta = e_x - e_y with mean m, is split along a frame (`frame`; ReVision v3, Sec. 3) into the mean
parts beta = P_U m and gamma = P_V m and the residuals delta and zeta. All four are orthogonal on average, so that
E||Delta||^2 = ||beta||^2 + ||gamma||^2 + E||delta||^2 + E||zeta||^2, exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from revision.geometry import frame, pairwise
from revision.geometry.frame import Frame
from revision.geometry.rows import require_unit

RANKS = (1, 5, 10)  # of retrieval


def compare_pairs(text: np.ndarray, image: np.ndarray, axes: Frame) -> dict[str, Any]:
    """Every measure of pairs, as JSON values.

    Args:
        text, image: unit rows [n, d], row i of one belongs to row i of the other.
        axes: of U and V, from `frame.fit_frame`; the same for all alignments that are compared.

    Returns:
        `cosine`, its mean over pairs, and `cosine_std`; `unpaired_cosine`; R@k under `text_to_image` and
        `image_to_text`; and `decomposition`, of `split_gap`.

    Raises:
        ValueError: fewer than three pairs, sides of different length or width, or a row that is not of norm one.
    """
    if len(text) < 3:
        raise ValueError(f"measures of pairs need at least 3 pairs, there are {len(text)}: give more pairs")
    require_unit(text=text, image=image)
    if len(text) != len(image):
        raise ValueError(f"there are {len(text)} texts but {len(image)} images: give pairs, row by row")
    cosines = paired_cosines(text, image)
    return {
        "cosine": float(cosines.mean()),
        "cosine_std": float(cosines.std()),
        "unpaired_cosine": unpaired_cosine(text, image),
        "text_to_image": pairwise.retrieval(text, image, RANKS),
        "image_to_text": pairwise.retrieval(image, text, RANKS),
        "decomposition": split_gap(text, image, axes),
    }


def paired_cosines(text: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Cosine of row i of one side with row i of the other, float64 [n]."""
    return np.einsum("nd,nd->n", text.astype(np.float64), image.astype(np.float64))


def unpaired_cosine(text: np.ndarray, image: np.ndarray) -> float:
    """Mean cosine of all rows that do not belong together: what the cosine of pairs has to be above."""
    count = len(text)
    total = text.sum(axis=0, dtype=np.float64) @ image.sum(axis=0, dtype=np.float64)
    return float((total - paired_cosines(text, image).sum()) / (count * (count - 1)))


def split_gap(text: np.ndarray, image: np.ndarray, axes: Frame) -> dict[str, Any]:
    """Norms, condition numbers and angles of the four parts of the gap, as JSON values (ReVision v3, Sec. 3).

    Args:
        text, image: unit rows [n, d], row i of one belongs to row i of the other.
        axes: of U and V.

    Returns:
        `rank` of U; `mean_norm` = ||m||, `beta_norm`, `gamma_norm`, `delta_rms` = sqrt(E||delta||^2), `zeta_rms`;
        `energy`, the four squared parts, which add up to E||Delta||^2; condition numbers and effective ranks of
        Cov(delta) and Cov(zeta), None where there is no residual; angles in degrees, 0 to 90, None where the mean part
        is zero: of m to U, of beta to the first eigenvector of Cov(delta), of gamma to that of Cov(zeta), which the
        paper reports near 90.
    """
    parts = frame.decompose(image, text, axes)
    beta, gamma = float(np.linalg.norm(parts.beta)), float(np.linalg.norm(parts.gamma))
    within, outside = frame.Spread.of(parts.delta), frame.Spread.of(parts.zeta)
    delta, zeta = (float(np.square(rows).sum() / len(rows)) for rows in (parts.delta, parts.zeta))
    return {
        "rank": axes.u.shape[1],
        "mean_norm": float(np.hypot(beta, gamma)),
        "beta_norm": beta,
        "gamma_norm": gamma,
        "delta_rms": delta**0.5,
        "zeta_rms": zeta**0.5,
        "energy": {"beta": beta**2, "gamma": gamma**2, "delta": delta, "zeta": zeta},
        "delta_condition_number": within.condition_number,
        "zeta_condition_number": outside.condition_number,
        "delta_effective_rank": within.effective_rank,
        "zeta_effective_rank": outside.effective_rank,
        "mean_to_U_angle": float(np.degrees(np.arctan2(gamma, beta))) if beta + gamma > 0 else None,
        "beta_to_delta_angle": within.angle_to_first_axis(parts.beta),
        "gamma_to_zeta_angle": outside.angle_to_first_axis(parts.gamma),
    }
