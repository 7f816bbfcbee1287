"""The alignments, one section each. To add one: a subclass here, its line in `build_alignment` and METHODS, one config.

Notation: e a unit text row; mu_y, mu_x the means of text and image; T_y, T_x the traces of their covariances;
norm(v) = v / ||v||.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from revision.alignment import files
from revision.alignment.base import Alignment
from revision.alignment.moments import Moments
from revision.alignment.rows import renormalise

# The traces of rows that differ by rounding alone stay far below this; those of any two float16 rows far above.
SMALLEST_TRACE = 1e-24

C3_NOISE_STD = math.sqrt(0.016)


class NoAlignment(Alignment):
    """Raw text embeddings, on the unit sphere. Needs no statistics; they are taken for the record."""

    method = "none"

    def parameters(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    def _solve(self, text: Moments, image: Moments, mapped_mean: Callable[[], torch.Tensor]) -> None:
        self._vectors = {}

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        return rows


class MeanShift(Alignment):
    """norm(e - mu_y + mu_x): the anchor step of ReAlign alone (ReVision v3, Sec. 4 and Table "anchor only").

    Needs the two means.
    """

    method = "mean_shift"

    def parameters(self) -> dict[str, Any]:
        """No parameters."""
        return {}

    def _solve(self, text: Moments, image: Moments, mapped_mean: Callable[[], torch.Tensor]) -> None:
        self._vectors = {"shift": image.mean - text.mean}

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        return renormalise(rows.add_(self._vector("shift", rows)))


class C3(MeanShift):
    """norm(e - mu_y + mu_x + sigma n), n ~ N(0, I), drawn anew at each epoch of training (C3, arXiv 2401.08567).

    Needs the two means. Noise enters only where `apply` is given row ids; each row's noise is a function of
    (seed, epoch, row id) alone, so neither batch order nor the number of workers changes it.

    Args:
        noise_std: sigma, the standard deviation of each coordinate; sqrt(0.016) is the value in the repository of C3.
            The value behind the C3 rows of ReVision's tables is not stated.
        seed: of the noise.

    Raises:
        ValueError: a negative or non-finite `noise_std`, or a negative seed.
    """

    method = "c3"

    def __init__(self, noise_std: float = C3_NOISE_STD, seed: int = 0) -> None:
        super().__init__()
        if not (math.isfinite(noise_std) and noise_std >= 0):
            raise ValueError(f"noise_std={noise_std} must be a number not below zero; C3 uses {C3_NOISE_STD:.4f}")
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative")
        self.noise_std = noise_std
        self.seed = seed

    def parameters(self) -> dict[str, Any]:
        """Standard deviation and seed of the noise."""
        return {"noise_std": self.noise_std, "seed": self.seed}

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        if keys is not None:
            noise = gaussian_rows(keys, rows.shape[1], seed=self.seed, epoch=epoch)
            rows.add_(torch.from_numpy(noise).to(rows), alpha=self.noise_std)
        return super()._map(rows, keys, epoch)


class ReAlign(Alignment):
    """Anchor, trace and centroid alignment (ReVision v3, Sec. 4).

        s  = sqrt(T_x / T_y)
        e' = norm(mu_x + s (e - mu_y))          anchor and trace
        e" = norm(e' - mu' + mu_x)              centroid, with mu' = E[e'] over the text

    Needs means and traces of both sides, and one more pass over the text for each centroid step. The last
    normalisation moves the mean again: ||E[e"] - mu_x|| <= ||mu_x - mu'||, about 1e-4 in the paper. The same inequality
    holds for every further step on its own output, so the gap only shrinks; at the fixed point the traces agree too,
    because on the unit sphere T = 1 - ||mu||^2.

    Args:
        centroid_steps: times the centroid correction is made; 1 is the paper, 0 leaves it out.
        until: instead, correct until the centroid gap over the fitted rows (in float64) is below this.

    Raises:
        ValueError: a negative `centroid_steps`, or an `until` that is not positive; when fitting, a side whose rows are
            all equal, or an `until` below what float64 can resolve.
    """

    method = "realign"

    def __init__(self, centroid_steps: int = 1, until: float | None = None) -> None:
        super().__init__()
        if centroid_steps < 0:
            raise ValueError(f"centroid_steps={centroid_steps} must not be negative; the paper makes 1")
        if until is not None and not until > 0:
            raise ValueError(f"until={until} must be a positive distance, such as 1e-7")
        self.centroid_steps = centroid_steps
        self.until = until

    def parameters(self) -> dict[str, Any]:
        """Number of centroid steps and tolerance."""
        return {"centroid_steps": self.centroid_steps, "until": self.until}

    @property
    def scale(self) -> float:
        """s = sqrt(T_x / T_y)."""
        return math.sqrt(self.statistics.image.trace / self.statistics.text.trace)

    def _solve(self, text: Moments, image: Moments, mapped_mean: Callable[[], torch.Tensor]) -> None:
        for what, side in (("text", text), ("image", image)):
            if side.trace < SMALLEST_TRACE:
                raise ValueError(f"the {what} rows are all equal, so ReAlign finds no scale (zero trace): add rows")
        scale = math.sqrt(image.trace / text.trace)
        self._vectors = {
            "scale": torch.tensor(scale, dtype=torch.float64),
            "offset": image.mean - scale * text.mean,
            "corrections": torch.empty(0, image.dim, dtype=torch.float64),
        }
        gap = math.inf
        while self.until is not None or len(self._vectors["corrections"]) < self.centroid_steps:
            correction = image.mean - mapped_mean()
            previous, gap = gap, float(torch.linalg.vector_norm(correction))
            if self.until is not None and gap < self.until:
                return
            if self.until is not None and gap >= previous:
                raise ValueError(f"until={self.until} is out of reach: the gap stays at {gap:.1e}; raise until")
            self._vectors["corrections"] = torch.cat([self._vectors["corrections"], correction[None]])

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        rows = renormalise(rows.mul_(self._vector("scale", rows)).add_(self._vector("offset", rows)))
        for correction in self._vector("corrections", rows):
            rows = renormalise(rows.add_(correction))
        return rows


METHODS: dict[str, type[Alignment]] = {cls.method: cls for cls in (NoAlignment, MeanShift, C3, ReAlign)}


def gaussian_rows(keys: np.ndarray, dim: int, *, seed: int, epoch: int) -> np.ndarray:
    """Standard normal rows, float64 [n, dim], row i a function of (seed, epoch, keys[i]) alone.

    Philox is a counter-based generator: seed and row key are its key and the epoch is the high word of its counter, so
    no two triples share a stream, and no stream has to be run up to a position or stored.
    """
    noise = np.empty((len(keys), dim))
    for row, key in zip(noise, keys, strict=True):
        bits = np.random.Philox(key=np.array([seed, key], dtype=np.uint64), counter=[0, 0, 0, epoch])
        np.random.Generator(bits).standard_normal(out=row)
    return noise


def build_alignment(
    *,
    method: str,
    centroid_steps: int = 1,
    until: float | None = None,
    noise_std: float = C3_NOISE_STD,
    seed: int = 0,
) -> Alignment:
    """An unfitted alignment by name; each method takes the settings it knows.

    Raises:
        ValueError: unknown method, or a setting its class refuses.
    """
    if method == "none":
        return NoAlignment()
    if method == "mean_shift":
        return MeanShift()
    if method == "c3":
        return C3(noise_std=noise_std, seed=seed)
    if method == "realign":
        return ReAlign(centroid_steps=centroid_steps, until=until)
    raise ValueError(f"alignment method {method!r} is unknown; choose one of {', '.join(METHODS)}")


def load_alignment(path: Path) -> Alignment:
    """Read an alignment that `Alignment.save` wrote; it applies exactly as the saved one did.

    Args:
        path: folder with `alignment.safetensors` and `alignment.json`.

    Raises:
        ValueError: a file is missing or damaged, the two are of different saves, or the method is unknown here.
    """
    facts, tensors = files.read(path)
    if facts["method"] not in METHODS:
        raise ValueError(f"{path} is of alignment method {facts['method']!r}; this version knows {', '.join(METHODS)}")
    return METHODS[facts["method"]](**facts["parameters"]).restore(facts, tensors)
