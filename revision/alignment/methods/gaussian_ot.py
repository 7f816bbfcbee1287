"""Optimal transport between Gaussians, a yardstick."""

from __future__ import annotations

import torch

from revision.alignment.centroid import CentroidCorrected
from revision.alignment.fitting import Fitting
from revision.alignment.moments import Detail
from revision.alignment.settings import number
from revision.alignment.spectra import check_ridge, ridged, transport


class GaussianOT(CentroidCorrected):
    """The optimal-transport map from N(mu_y, Sigma_y) to N(mu_x, Sigma_x), put on the sphere.

        e' = norm(mu_x + A (e - mu_y)),   A = Sigma_y^(-1/2) (Sigma_y^(1/2) Sigma_x Sigma_y^(1/2))^(1/2) Sigma_y^(-1/2)

    and then the centroid step. A is the symmetric positive matrix with A Sigma_y A = Sigma_x; of all maps that bring
    one covariance to the other it moves the rows least (Knott and Smith, 1984). Where Sigma_x = s^2 Sigma_y, it is
    ReAlign.

    Needs: means and covariances of both sides, and one more pass over the text for each centroid step.
    Open: the paper does not have this method; ridge, normalisation and centroid step are ours, to be fair to it.

    Args:
        ridge: share of the mean variance T / d of each side that is added to its covariance in all directions. As it
            grows, the map goes to ReAlign's.
        centroid_steps, until: as in ReAlign.

    Raises:
        ValueError: a negative ridge; when fitting, a side whose rows are all equal, or a singular text covariance
            without a ridge.
    """

    method = "gaussian_ot"
    needs = (Detail.COVARIANCE, Detail.COVARIANCE)
    matches_trace = True

    def __init__(self, ridge: float = 1e-3, centroid_steps: int = 1, until: float | None = None) -> None:
        super().__init__(centroid_steps, until)
        self.ridge = number("ridge", ridge)
        check_ridge(self.ridge)

    def _prepare(self, fitting: Fitting) -> None:
        fitting.check_spread("GaussianOT")
        text, image = (ridged(s.covariance, self.ridge * s.trace / s.dim) for s in (fitting.text, fitting.image))
        self._vectors = {
            "matrix": transport(text, image),
            "text_mean": fitting.text.mean,
            "image_mean": fitting.image.mean,
        }

    def _move(self, rows: torch.Tensor) -> torch.Tensor:
        centred = rows.sub_(self._vector("text_mean", rows))
        return (centred @ self._vector("matrix", rows)).add_(self._vector("image_mean", rows))
