"""Blockwise covariance alignment (ReVision v3, App. F)."""

from __future__ import annotations

import torch

from revision.alignment.fitting import Fitting
from revision.alignment.rows import renormalise
from revision.alignment.spectra import frame, power, restricted, ridged
from revision.alignment.subspace import SubspaceMap


class Blockwise(SubspaceMap):
    """Whitening and colouring within U and within V (BCA, ReVision v3, App. F).

        e~  = norm(e - mu_y + mu_x)
        T_B = Sigma_x,B^(1/2) Sigma_y,B^(-1/2)                for B in {U, V}
        e'  = norm(T_U P_U e~ + T_V P_V e~)                   then the centroid step

    Needs: means and covariances of both sides, and one more pass over the text for each centroid step.
    Open: r and the regularisation, so `rank`, `energy` and `ridge` are ours; whether Sigma_y is that of e or of e~
    (here e); that T_B acts on e~ with its mean in it, which tilts the mean and leaves the repair to the centroid step
    (here as written).

    Arguments and errors are those of `SubspaceMap`; the ridge is added in all directions.
    """

    method = "blockwise"

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
        return shifted @ self._vector("transposed", rows)
