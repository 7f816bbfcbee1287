"""Maps that treat the leading subspace of the joint spectrum apart from the rest."""

from __future__ import annotations

from typing import ClassVar

from revision.alignment.centroid import CentroidCorrected
from revision.alignment.moments import Detail
from revision.alignment.settings import number, whole
from revision.alignment.spectra import check_frame, check_ridge


class SubspaceMap(CentroidCorrected):
    """A map from the covariances of both sides, with a part for U and a part for V, followed by the centroid step.

    U is spanned by the top r eigenvectors of Sigma_y + Sigma_x, V by the rest (ReVision v3, Sec. 3); Sigma_B is Sigma
    in coordinates of B.

    Args:
        rank: r; None: the smallest with a share `energy` of the trace of Sigma_y + Sigma_x.
        energy: that share.
        ridge: share of the mean variance T / d of each side that is added to its variances.
        centroid_steps, until: as in `CentroidCorrected`.

    Raises:
        ValueError: a rank below one or above d, an energy outside (0, 1], a negative ridge; when fitting, a side whose
            rows are all equal, or a text covariance without an inverse and without a ridge.
    """

    needs: ClassVar[tuple[Detail, Detail]] = (Detail.COVARIANCE, Detail.COVARIANCE)

    def __init__(
        self,
        rank: int | None = None,
        energy: float = 0.9,
        ridge: float = 1e-3,
        centroid_steps: int = 1,
        until: float | None = None,
    ) -> None:
        super().__init__(centroid_steps, until)
        self.rank = None if rank is None else whole("rank", rank)
        self.energy, self.ridge = number("energy", energy), number("ridge", ridge)
        check_frame(self.rank, self.energy)
        check_ridge(self.ridge)
