"""The shift of the mean: the anchor step of ReAlign alone."""

from __future__ import annotations

import numpy as np
import torch

from revision.alignment.base import Alignment
from revision.alignment.chain import Chain
from revision.alignment.fitting import Fitting
from revision.alignment.rows import renormalise


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

    def _chain(self) -> Chain:
        return Chain(1.0, self._vectors["shift"][None])
