"""The shift of the mean with isotropic noise, as C3 does it."""

from __future__ import annotations

import math

import numpy as np
import torch

from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.noise import check_noise, noise_like
from revision.alignment.settings import number, whole

NOISE_STD = math.sqrt(0.016)  # the repository of C3


class C3(MeanShift):
    """norm(e - mu_y + mu_x + sigma n), n ~ N(0, I), drawn anew at each epoch of training (C3, arXiv 2401.08567).

    Noise enters only where `apply` is given row ids; each row's noise is a function of (seed, epoch, row id) alone, so
    neither batch order nor the number of workers changes it.

    Needs: the two means.
    Open: sigma behind the C3 rows of ReVision's tables, and whether their gap of 0.0023 is with or without noise.

    Args:
        noise_std: sigma, the standard deviation of each coordinate; sqrt(0.016) is the value in the repository of C3.
        seed: of the noise.

    Raises:
        ValueError: a negative or non-finite `noise_std`, or a seed that is negative or above 64 bits.
    """

    method = "c3"
    draws_noise = True

    def __init__(self, noise_std: float = NOISE_STD, seed: int = 0) -> None:
        super().__init__()
        self.noise_std, self.seed = number("noise_std", noise_std), whole("seed", seed)
        check_noise("noise_std", self.noise_std, self.seed)

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        if keys is not None:
            rows.add_(noise_like(rows, keys, seed=self.seed, epoch=epoch), alpha=self.noise_std)
        return super()._map(rows, keys, epoch)
