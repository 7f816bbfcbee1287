"""No alignment: the baseline of every comparison."""

from __future__ import annotations

import numpy as np
import torch

from revision.alignment.base import Alignment
from revision.alignment.fitting import Fitting


class NoAlignment(Alignment):
    """Raw text embeddings, on the unit sphere ("no align" in ReVision's tables).

    Needs: nothing; the statistics are taken for the record.
    """

    method = "none"

    def _solve(self, fitting: Fitting) -> None:
        self._vectors = {}

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        return rows
