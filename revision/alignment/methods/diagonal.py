"""Matching of means and standard deviations column by column."""

from __future__ import annotations

import numpy as np
import torch

from revision.alignment.base import Alignment
from revision.alignment.fitting import SMALLEST_TRACE, Fitting
from revision.alignment.moments import Detail
from revision.alignment.noise import check_noise, noise_like
from revision.alignment.rows import renormalise
from revision.alignment.settings import number, whole


class Diagonal(Alignment):
    """norm(mu_x + (sigma_x / sigma_y) (e - mu_y)), each column with its own standard deviations (TOMCap, 2512.04309).

    Depends on the axes that the encoder happens to have: rotating both clouds changes the result.

    Needs: means and the variance of each column, both sides.
    Open: size and place of the optional noise. Here it is N(0, jitter^2 I), added before the normalisation, in training
    only, drawn as C3's.

    Args:
        jitter: standard deviation of the noise on each coordinate; 0 adds none.
        seed: of the noise.

    Raises:
        ValueError: a negative or non-finite `jitter`, or a seed that is negative or above 64 bits; when fitting, a side
            whose rows are all equal or a text column without variance.
    """

    method = "diagonal"
    draws_noise = True
    needs = (Detail.VARIANCES, Detail.VARIANCES)
    matches_trace = True

    def __init__(self, jitter: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.jitter, self.seed = number("jitter", jitter), whole("seed", seed)
        check_noise("jitter", self.jitter, self.seed)

    def _solve(self, fitting: Fitting) -> None:
        fitting.check_spread("Diagonal")
        text, image = fitting.text, fitting.image
        flat = (text.variances < SMALLEST_TRACE / text.dim).nonzero()
        if len(flat):
            raise ValueError(
                f"text column {int(flat[0])} has zero variance, so Diagonal finds no scale for it: drop the column on "
                f"both sides, or use another alignment"
            )
        scales = (image.variances / text.variances).sqrt()
        self._vectors = {"scales": scales, "offset": image.mean - scales * text.mean}

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        rows.mul_(self._vector("scales", rows)).add_(self._vector("offset", rows))
        if keys is not None and self.jitter > 0:
            rows.add_(noise_like(rows, keys, seed=self.seed, epoch=epoch), alpha=self.jitter)
        return renormalise(rows)
