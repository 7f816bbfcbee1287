"""Both clouds centred, as Unicorn does it."""

from __future__ import annotations

import numpy as np
import torch

from revision.alignment.base import Alignment
from revision.alignment.chain import Chain
from revision.alignment.fitting import Fitting
from revision.alignment.rows import renormalise


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

    def _chain(self) -> Chain:
        return Chain(1.0, -self._vectors["text_mean"][None])

    def _map_image(self, rows: torch.Tensor) -> torch.Tensor:
        return renormalise(rows.sub_(self._vector("image_mean", rows)))
