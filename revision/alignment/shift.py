"""Alignments that need the two means alone: none, mean shift, Unicorn's centring, C3's noise.

Notation here and in the other methods: e a unit text row; mu_y, mu_x the means of text and image; Sigma_y, Sigma_x
their covariances and T_y, T_x the traces of these; norm(v) = v / ||v||.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from revision.alignment.base import Alignment
from revision.alignment.fitting import Fitting
from revision.alignment.noise import check_noise, noise_like
from revision.alignment.rows import renormalise
from revision.alignment.settings import number, whole

C3_NOISE_STD = math.sqrt(0.016)


class NoAlignment(Alignment):
    """Raw text embeddings, on the unit sphere ("no align" in ReVision's tables).

    Needs: nothing; the statistics are taken for the record.
    """

    method = "none"

    def _solve(self, fitting: Fitting) -> None:
        self._vectors = {}

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        return rows


class MeanShift(Alignment):
    """norm(e - mu_y + mu_x): the anchor step of ReAlign alone (ReVision v3, Sec. 4 and Table "anchor only").

    Needs: the two means.
    Open: nothing. The paper's own number for it lies below that of no alignment at all, which it does not explain.
    """

    method = "mean_shift"

    def _solve(self, fitting: Fitting) -> None:
        self._vectors = {"shift": fitting.image.mean - fitting.text.mean}

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        return renormalise(rows.add_(self._vector("shift", rows)))


class Unicorn(Alignment):
    """norm(e - mu_y) for texts, norm(x - mu_x) for the images met at inference (Unicorn, arXiv 2503.22655).

    Both clouds move to the origin, so this is the one method here that changes images: `apply_to_images` must be called
    on whatever the trained model is shown, and the gap is measured between the two moved clouds.

    Needs: the two means.
    Open: whether centred rows are put back on the sphere is not stated for either side; they are here, since the
    projector then meets rows of one length.
    """

    method = "unicorn"
    moves_images = True

    def _solve(self, fitting: Fitting) -> None:
        fitting.check_spread("Unicorn")  # a row at the mean has no direction once it is centred, but that of rounding
        self._vectors = {"text_mean": fitting.text.mean, "image_mean": fitting.image.mean}

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        return renormalise(rows.sub_(self._vector("text_mean", rows)))

    def _map_image(self, rows: torch.Tensor) -> torch.Tensor:
        return renormalise(rows.sub_(self._vector("image_mean", rows)))


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
    settings = ("noise_std", "seed")

    def __init__(self, noise_std: float = C3_NOISE_STD, seed: int = 0) -> None:
        super().__init__()
        self.noise_std, self.seed = number("noise_std", noise_std), whole("seed", seed)
        check_noise("noise_std", self.noise_std, self.seed)

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        if keys is not None:
            rows.add_(noise_like(rows, keys, seed=self.seed, epoch=epoch), alpha=self.noise_std)
        return super()._map(rows, keys, epoch)
