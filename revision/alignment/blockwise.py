"""Blockwise covariance alignment (ReVision v3, App. F)."""

from __future__ import annotations

import torch

from revision.alignment.centroid import CentroidCorrected
from revision.alignment.fitting import Fitting
from revision.alignment.moments import Detail
from revision.alignment.rows import renormalise
from revision.alignment.spectra import check_frame, check_ridge, frame, power, restricted, ridged


class Blockwise(CentroidCorrected):
    """Whitening and colouring within U and within V (BCA, ReVision v3, App. F).

        e~  = norm(e - mu_y + mu_x)
        T_B = Sigma_x,B^(1/2) Sigma_y,B^(-1/2)                for B in {U, V}
        e'  = norm(T_U P_U e~ + T_V P_V e~)                   then the centroid step

    U is spanned by the top r eigenvectors of Sigma_y + Sigma_x, V by the rest; Sigma_B is Sigma in coordinates of B.

    Needs: means and covariances of both sides, and one more pass over the text for each centroid step.
    Open: r and the regularisation, so `rank`, `energy` and `ridge` are ours; whether Sigma_y is that of e or of e~
    (here e); that T_B acts on e~ with its mean in it, which tilts the mean and leaves the repair to the centroid step
    (here as written).

    Args:
        rank: r; None: the smallest with a share `energy` of the trace of Sigma_y + Sigma_x.
        energy: that share.
        ridge: share of the mean variance T / d of each side that is added to its covariance in all directions.
        centroid_steps, until: as in ReAlign.

    Raises:
        ValueError: a rank below one or above d, an energy outside (0, 1], a negative ridge; when fitting, a side whose
            rows are all equal, or a singular text covariance without a ridge.
    """

    method = "blockwise"
    settings = ("rank", "energy", "ridge", "centroid_steps", "until")
    needs = (Detail.COVARIANCE, Detail.COVARIANCE)

    def __init__(
        self,
        rank: int | None = None,
        energy: float = 0.9,
        ridge: float = 1e-3,
        centroid_steps: int = 1,
        until: float | None = None,
    ) -> None:
        super().__init__(centroid_steps, until)
        check_frame(rank, energy)
        check_ridge(ridge)
        self.rank = rank
        self.energy = energy
        self.ridge = ridge

    def details(self) -> dict[str, float]:
        """Dimension of U."""
        return {"rank": float(self._vectors["rank"])} if self._vectors else {}

    def _prepare(self, fitting: Fitting) -> None:
        fitting.check_spread("Blockwise")
        text, image = fitting.text, fitting.image
        bases = frame(fitting, self.rank, self.energy)
        matrix = torch.zeros(text.dim, text.dim, dtype=torch.float64)
        for basis in bases:
            if basis.shape[1]:
                of_text, of_image = (
                    ridged(restricted(side.covariance, basis), self.ridge * side.trace / side.dim)
                    for side in (text, image)
                )
                whiten = power(of_text, -0.5, "the covariance of the text rows")
                matrix += basis @ power(of_image, 0.5) @ whiten @ basis.T
        self._vectors = {
            "shift": image.mean - text.mean,
            "transposed": matrix.T.contiguous(),
            "rank": torch.tensor(float(bases[0].shape[1]), dtype=torch.float64),
        }

    def _move(self, rows: torch.Tensor) -> torch.Tensor:
        shifted = renormalise(rows.add_(self._vector("shift", rows)))
        return renormalise(shifted @ self._vector("transposed", rows))
