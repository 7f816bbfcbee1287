"""Matching of radial quantiles in the leading subspace: the training-free start of AnisoAlign."""

from __future__ import annotations

import torch

from revision.alignment.fitting import Fitting, Side
from revision.alignment.quantiles import SMALLEST, RadiusSketch, transfer
from revision.alignment.spectra import frame
from revision.alignment.subspace import SubspaceMap

LEVELS = 1000  # steps between the quantiles that are kept


class Quantile(SubspaceMap):
    """Radial quantile matching in U, scaling by standard deviations in V (the start of AnisoAlign, arXiv 2605.07825).

    In the frame of the eigenvectors of Sigma_y + Sigma_x + lambda I, rows are centred, e - mu_y. In U consecutive
    coordinates form planes; in each the angle is kept and the radius rho becomes F_x^-1(F_y(rho)). In V each coordinate
    is scaled by sigma_x / sigma_y. Then mu_x is added, the row put on the sphere, and the centroid step made. The
    bounded learned refinement that AnisoAlign adds is no part of this.

    F_y and F_x are estimated over all rows in constant memory, whatever the chunks, with a relative error of a quantile
    of at most 0.1 % (`revision.alignment.quantiles`), and kept at 1001 levels; radii beyond those seen are scaled in
    proportion.

    Needs: means and covariances of both sides, one more pass over each for the quantiles, and one over the text for
    each centroid step.
    Open: r, lambda, which coordinates share a plane, and whether rows are centred first. lambda does not change the
    eigenvectors, so all that `ridge` regularises here is the scaling in V.

    Arguments and errors are those of `SubspaceMap`, but r is even, given or found: an odd one is an error, and so is a
    plane of U in which images vary and texts do not. The ridge is added in V.
    """

    method = "quantile"
    matches_trace = True

    def __init__(
        self,
        rank: int | None = None,
        energy: float = 0.9,
        ridge: float = 1e-3,
        centroid_steps: int = 1,
        until: float | None = None,
    ) -> None:
        super().__init__(rank, energy, ridge, centroid_steps, until)
        if self.rank is not None and self.rank % 2:
            raise ValueError(f"rank={rank} must be even: coordinates are matched in pairs")

    def details(self) -> dict[str, float]:
        """Dimension of U."""
        return {"rank": 2.0 * len(self._vectors["text_radii"])} if self._vectors else {}

    def _prepare(self, fitting: Fitting) -> None:
        fitting.check_spread("Quantile")
        text, image = fitting.text, fitting.image
        leading, rest = frame(fitting, self.rank, self.energy)
        basis, rank = torch.cat([leading, rest], dim=1), leading.shape[1]
        even = rank if rank % 2 == 0 else min(rank + 1, text.dim // 2 * 2)
        outside = basis[:, even:]
        of_text, of_image = (
            (outside * (side.covariance @ outside)).sum(dim=0) + self.ridge * side.trace / side.dim
            for side in (text, image)
        )
        if bool((of_text <= 1e-14 * text.trace).any()):
            raise ValueError(
                "the text rows have no variance in a direction outside of U, so Quantile finds no scale for it: set "
                "ridge above 0, or fit on more rows than columns"
            )
        text_radii = self._quantiles(fitting, "text", text.mean, basis[:, :even])
        image_radii = self._quantiles(fitting, "image", image.mean, basis[:, :even])
        # Radii below what the sketch resolves are rounding, which the map would blow up to radii of the images.
        if bool(((text_radii[:, -1] <= SMALLEST) & (image_radii[:, -1] > SMALLEST)).any()):
            raise ValueError(
                "the text rows have no variance in a plane of U, so Quantile finds no scale for it: lower rank or "
                "energy, or fit on more rows than columns"
            )
        self._vectors = {
            "basis": basis,
            "text_mean": text.mean,
            "image_mean": image.mean,
            "text_radii": text_radii,
            "image_radii": image_radii,
            "scales": (of_image.clamp_min(0) / of_text).sqrt(),
        }

    def _quantiles(self, fitting: Fitting, side: Side, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        sketch = RadiusSketch(basis.shape[1] // 2)
        for block in fitting.blocks(side):
            sketch.add(_planes(block.sub_(mean.to(block)) @ basis.to(block)).norm(dim=2))
        sketch.counts = fitting.total(sketch.counts)
        return sketch.quantiles(torch.linspace(0, 1, LEVELS + 1, dtype=torch.float64))

    def _move(self, rows: torch.Tensor) -> torch.Tensor:
        basis = self._vector("basis", rows)
        parts = rows.sub_(self._vector("text_mean", rows)) @ basis
        source, target = self._vector("text_radii", rows), self._vector("image_radii", rows)
        planes = _planes(parts[:, : 2 * len(source)])
        radii = planes.norm(dim=2)
        wanted = transfer(radii, source, target)
        planes.mul_((wanted / radii.clamp_min(torch.finfo(radii.dtype).tiny))[:, :, None])
        parts[:, 2 * len(source) :] *= self._vector("scales", rows)
        return (parts @ basis.T).add_(self._vector("image_mean", rows))


def _planes(coordinates: torch.Tensor) -> torch.Tensor:
    """[n, 2 k] seen as [n, k, 2]: consecutive coordinates, whose variances are closest, share a plane."""
    return coordinates.unflatten(1, (-1, 2))
