"""Gaussian optimal transport, shrunk towards ReAlign (ours)."""

from __future__ import annotations

import torch

from revision.alignment.fitting import Fitting
from revision.alignment.settings import number
from revision.alignment.spectra import frame, restricted, ridged, transport
from revision.alignment.subspace import SubspaceMap


class ShrunkOT(SubspaceMap):
    """Between ReAlign and the Gaussian map: optimal transport to a shrunk image covariance (ours).

        Sigma(a) = (1 - a) Sigma_x + a s^2 Sigma_y,   s^2 = T_x / T_y

    ReAlign is the optimal transport to s^2 Sigma_y, the belief that both clouds have one shape; GaussianOT believes the
    measured Sigma_x. Shrinking the target from one to the other keeps its trace at T_x for every a. The map is full
    within the top r eigenvectors of Sigma_y + Sigma_x and one scalar, of matching trace, outside of them, so it has r^2
    parameters instead of d^2. a = 1 is ReAlign for any r; a = 0 and r = d is GaussianOT.

    Without a given a, the one that minimises E||Sigma(a) - true Sigma_x||_F^2 within U is estimated, as Ledoit and Wolf
    (2004) do for a multiple of the identity: the error of the sample covariance over its squared distance from the
    target. It tends to 0 as 1 / n; whether that is best for what is trained on the rows is another question, and the
    reason why a can be set. Derivation: docs/alignment.md.

    Needs: means and covariances of both sides; one more pass over the images to estimate a, and one over the text for
    each centroid step.
    Open: the paper does not have this method.

    Args:
        shrinkage: a in [0, 1]; None estimates it.
        rank, energy, ridge, centroid_steps, until: as in `SubspaceMap`; the ridge is that of GaussianOT.

    Raises:
        ValueError: a shrinkage outside [0, 1], or as `SubspaceMap`.
    """

    method = "shrunk_ot"
    matches_trace = True

    def __init__(
        self,
        shrinkage: float | None = None,
        rank: int | None = None,
        energy: float = 0.9,
        ridge: float = 1e-3,
        centroid_steps: int = 1,
        until: float | None = None,
    ) -> None:
        super().__init__(rank, energy, ridge, centroid_steps, until)
        self.shrinkage = None if shrinkage is None else number("shrinkage", shrinkage)
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage={shrinkage} must be from 0 (GaussianOT) to 1 (ReAlign); None estimates it")

    def details(self) -> dict[str, float]:
        """Dimension of U, shrinkage used, and the scalar outside of U."""
        if not self._vectors:
            return {}
        found = {name: float(self._vectors[name]) for name in ("shrinkage", "scale_outside")}
        return {"rank": float(self._vectors["inward"].shape[1]), **found}

    def _prepare(self, fitting: Fitting) -> None:
        fitting.check_spread("ShrunkOT")
        text, image = fitting.text, fitting.image
        ratio = image.trace / text.trace
        basis, _ = frame(fitting, self.rank, self.energy)
        of_text, of_image = restricted(text.covariance, basis), restricted(image.covariance, basis)
        shrinkage = self.shrinkage
        if shrinkage is None:
            shrinkage = _estimate(fitting, basis, of_image, ratio * of_text)
        target = (1 - shrinkage) * of_image + shrinkage * ratio * of_text
        floor = self.ridge * text.trace / text.dim  # of the text; the target's is `ratio` times as much
        core = transport(ridged(of_text, floor), ridged(target, ratio * floor))
        outside = self._scale_outside(fitting, basis, shrinkage)
        core -= outside * torch.eye(len(core), dtype=core.dtype)
        self._vectors = {
            "inward": basis,
            "outward": (core @ basis.T).contiguous(),
            "scale_outside": torch.tensor(outside, dtype=torch.float64),
            "shrinkage": torch.tensor(shrinkage, dtype=torch.float64),
            "text_mean": text.mean,
            "image_mean": image.mean,
        }

    def _scale_outside(self, fitting: Fitting, basis: torch.Tensor, shrinkage: float) -> float:
        """Square root of the ratio of the traces of target and text outside of U; s where the text has none there."""
        text, image = fitting.text, fitting.image
        ratio = image.trace / text.trace
        remaining = text.dim - basis.shape[1]
        of_text, of_image = (side.trace - float(restricted(side.covariance, basis).trace()) for side in (text, image))
        floor = remaining * self.ridge * text.trace / text.dim
        if remaining == 0 or of_text + floor <= 1e-12 * text.trace:
            return ratio**0.5
        target = (1 - shrinkage) * max(of_image, 0.0) + shrinkage * ratio * of_text
        return float(((target + ratio * floor) / (of_text + floor)) ** 0.5)

    def _move(self, rows: torch.Tensor) -> torch.Tensor:
        centred = rows.sub_(self._vector("text_mean", rows))
        inside = (centred @ self._vector("inward", rows)) @ self._vector("outward", rows)
        return inside.add_(centred * self._vector("scale_outside", rows)).add_(self._vector("image_mean", rows))


def _estimate(fitting: Fitting, basis: torch.Tensor, sample: torch.Tensor, target: torch.Tensor) -> float:
    """The a that minimises E||(1 - a) S + a target - Sigma||_F^2 for the sample covariance S of the images in U.

    With target independent of S this is E||S - Sigma||^2 / E||S - target||^2. The numerator is estimated by
    (E||u||^4 - ||S||^2) / n, u = U^T (x - mu_x), the denominator by its own value.
    """
    mean = fitting.image.mean

    def fourth_powers(block: torch.Tensor) -> torch.Tensor:
        """||u||^4 of each row, as a column whose mean is their expectation."""
        inside = block.sub_(mean.to(block)) @ basis.to(block)
        return inside.square().sum(dim=1, keepdim=True).square()

    fourth = float(fitting.measure("image", fourth_powers).mean)
    error = (fourth - float(sample.square().sum())) / fitting.image.count
    apart = float((sample - target).square().sum())
    return min(1.0, max(0.0, error / apart)) if apart > 0 else 1.0
