"""ReAlign with noise where images vary and aligned texts do not (ours)."""

from __future__ import annotations

import math

import numpy as np
import torch

from revision.alignment.fitting import Fitting
from revision.alignment.methods.realign import ReAlign
from revision.alignment.moments import Detail
from revision.alignment.noise import check_noise, noise_like
from revision.alignment.rows import renormalise
from revision.alignment.settings import number, whole
from revision.alignment.spectra import positive_part, power


class ResidualNoise(ReAlign):
    """ReAlign, and in training noise of the covariance that the aligned texts lack (ours).

        D  = Sigma_x - Sigma_e^                 e^ the rows that ReAlign gives, with trace T_e^
        n  ~ N(0, eta^2 D_+),                   D_+ the positive part of D
        c  = sqrt(T_x / (T_e^ + eta^2 tr D_+))
        z  = norm(mu_x + c (e^ - mu_x + n))     then its own centroid step

    If an image embedding is what its text determines plus an uncorrelated rest, the covariance of the rest is D. D_+ is
    the smallest covariance, in trace, with Sigma_e^ + D_+ >= Sigma_x in every direction, and all that unpaired rows can
    say of it; c takes back the surplus of trace, so that the noisy cloud is as wide as the image cloud, which on the
    sphere means that its mean is as long. Derivation: docs/alignment.md.

    `apply(rows)` without ids is ReAlign. With ids the noise of a row is a function of (seed, epoch, row id) alone. Its
    centroid step is fitted on the noise of epoch 0 for rows 0, 1, ... in their order, as training draws it.

    Needs: means and traces of both sides, the covariance of the images, that of the aligned text in one more pass, and
    one pass over the text for each centroid step. D is a difference of two sample covariances: with n not well above d,
    part of D_+ is sampling error.
    Open: the paper does not have this method. Nothing unpaired says whether more or less noise than D_+ trains better,
    so eta can be set.

    Args:
        noise_scale: eta; 0 is ReAlign, 1 the derived amount.
        seed: of the noise.
        centroid_steps, until: as in ReAlign. With `until`, the noisy rows get one centroid step: their gap changes with
            each epoch's noise.

    Raises:
        ValueError: a negative or non-finite `noise_scale`, a seed that is negative or above 64 bits, or as ReAlign.
    """

    method = "residual_noise"
    draws_noise = True
    needs = (Detail.TRACE, Detail.COVARIANCE)

    def __init__(
        self, noise_scale: float = 1.0, seed: int = 0, centroid_steps: int = 1, until: float | None = None
    ) -> None:
        super().__init__(centroid_steps, until)
        self.noise_scale, self.seed = number("noise_scale", noise_scale), whole("seed", seed)
        check_noise("noise_scale", self.noise_scale, self.seed)

    def details(self) -> dict[str, float]:
        """Share of noise in the trace of the noisy cloud, and the factor c on what text determines."""
        if not self._vectors:
            return {}
        return {name: float(self._vectors[name]) for name in ("noise_share", "text_factor")}

    def _solve(self, fitting: Fitting) -> None:
        super()._solve(fitting)
        image = fitting.image
        aligned = fitting.measure("text", lambda block: self._map(block, None, 0), Detail.COVARIANCE)
        lacking = self.noise_scale**2 * positive_part(image.covariance - aligned.covariance)
        noise = float(lacking.trace())
        factor = math.sqrt(image.trace / (aligned.trace + noise))
        self._vectors |= {
            "image_mean": image.mean,
            "text_factor": torch.tensor(factor, dtype=torch.float64),
            "noise_share": torch.tensor(noise / (aligned.trace + noise), dtype=torch.float64),
            "noise_root": factor * power(lacking, 0.5),  # symmetric, so that it does not hang on eigenvectors' signs
            "noisy_corrections": torch.empty(0, image.dim, dtype=torch.float64),
        }
        for _ in range(self.centroid_steps if self.until is None else 1):
            noisy = fitting.measure_numbered("text", lambda block, numbers: self._map(block, numbers, 0))
            correction = (image.mean - noisy.mean)[None]
            self._vectors["noisy_corrections"] = torch.cat([self._vectors["noisy_corrections"], correction])

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        rows = super()._map(rows, None, epoch)
        if keys is None:
            return rows
        noise = noise_like(rows, keys, seed=self.seed, epoch=epoch) @ self._vector("noise_root", rows)
        middle = self._vector("image_mean", rows)
        rows = renormalise(rows.sub_(middle).mul_(self._vector("text_factor", rows)).add_(noise).add_(middle))
        for correction in self._vector("noisy_corrections", rows):
            rows = renormalise(rows.add_(correction))
        return rows
