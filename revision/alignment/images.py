"""The image side of an alignment: what pictures become for a model that learned from the texts it moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from revision.alignment.base import Alignment
from revision.alignment.noise import RowIds


@dataclass(frozen=True)
class ImageSide:
    """An alignment whose `apply` is for image rows; it stands where readers of rows take an alignment."""

    alignment: Alignment

    @property
    def dim(self) -> int:
        """Width d of the rows."""
        return self.alignment.dim

    def apply(self, rows: np.ndarray, *, row_ids: RowIds | None = None, epoch: int = 0) -> np.ndarray:
        """Image rows [n, d] as the model reads them; nothing is drawn, so ids and epoch do not matter."""
        return self.alignment.apply_to_images(rows)
