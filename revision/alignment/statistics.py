"""What an alignment keeps of the rows that it was fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from revision.alignment.moments import Moments


@dataclass(frozen=True)
class Statistics:
    """What an alignment was fitted on.

    Attributes:
        text, image: moments of the unit rows of each side.
        text_fingerprint, image_fingerprint: of the stores they came from; None for rows that came from elsewhere.
        gap_after: distance between the mean of the mapped text rows (no noise added) and the image mean; None where the
            caller did without the pass that measures it.
        text_skipped, image_skipped: rows without a direction that `fit` was asked to leave out.
    """

    text: Moments
    image: Moments
    text_fingerprint: str | None
    image_fingerprint: str | None
    gap_after: float | None
    text_skipped: int = 0
    image_skipped: int = 0

    @property
    def gap_before(self) -> float:
        """Distance between the two means, ||mu_y - mu_x||."""
        return distance(self.text.mean, self.image.mean)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Euclidean distance of two vectors."""
    return float(torch.linalg.vector_norm(a - b))
