"""Clouds of unit rows and alignments for the tests of the geometry."""

from __future__ import annotations

from typing import Any

import numpy as np

from revision.alignment import Alignment, MeanShift, ReAlign, build_alignment
from revision.alignment.methods import built_in, method_class

DIM = 12
METHODS = {name: method_class(name) for name in built_in()}


def cloud(count: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Anisotropic unit rows, float64 [count, DIM]."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, DIM)) * np.arange(1, DIM + 1) ** -0.5 + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def built(method: str, **settings: Any) -> Alignment:
    """An alignment with those of the settings that its method has."""
    return build_alignment(method=method, **{k: v for k, v in settings.items() if k in METHODS[method].settings})


class NeedsRows(MeanShift):
    """Refuses fits on fewer than 30 rows, as maps of covariances do."""

    def fit(self, text: Any, image: Any, **options: Any) -> Any:
        if len(text) < 30:
            raise ValueError(f"the fit needs 30 rows, there are {len(text)}")
        return super().fit(text, image, **options)


def make(method: str) -> Alignment:
    """An unfitted alignment by name."""
    return {"realign": ReAlign, "mean_shift": MeanShift, "needs_rows": NeedsRows}[method]()
