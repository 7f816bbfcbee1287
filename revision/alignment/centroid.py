"""The centroid step of ReAlign, as the last step of every method that has one (ReVision v3, Sec. 4, step 3)."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch

from revision.alignment.base import Alignment
from revision.alignment.fitting import Fitting
from revision.alignment.rows import renormalise, renormalise_and_add
from revision.alignment.settings import number, whole

# Up to this share of T_x, the gap is small enough for the mean to answer a correction linearly.
LINEAR_GAP = 0.25
# A gap that is still there after so many passes shrinks too slowly to be waited for; sound fits take a dozen at most.
MOST_STEPS = 100


class CentroidCorrected(Alignment):
    """A map onto the sphere, followed by e^ = norm(e' - mu' + mu_x) with mu' = E[e'] over the text, once or more.

    The last normalisation moves the mean again: ||E[e^] - mu_x|| <= ||mu_x - mu'||. The same inequality holds for each
    further step on its own output, so the gap only shrinks; at the fixed point the traces agree too, because on the
    unit sphere T = 1 - ||mu||^2. A step costs a pass over the text and a vector.

    With `until`, steps are Newton's as soon as the gap is small. To first order a correction c moves the mean by
    (I - M) c, where M = E[e' e'^T] = Sigma' + mu' mu'^T, so that the plain step c = g (the gap) leaves M g: along mu_x
    a share ||mu_x||^2, which is nearly all of it in a narrow cloud. Solving with the known part of M,
    c = (I - mu_x mu_x^T)^{-1} g = g + mu_x (mu_x . g) / T_x, leaves what Sigma' does, which is small.

    Args:
        centroid_steps: times the centroid correction is made; 1 is the paper, 0 leaves it out.
        until: instead, correct until the centroid gap over the fitted rows (in float64) is below this.

    Raises:
        ValueError: a negative `centroid_steps`, or an `until` that is not positive; when fitting, an `until` below what
            float64 can resolve, or that 100 steps do not reach.
    """

    def __init__(self, centroid_steps: int = 1, until: float | None = None) -> None:
        super().__init__()
        self.centroid_steps = whole("centroid_steps", centroid_steps)
        if self.centroid_steps < 0:
            raise ValueError(f"centroid_steps={centroid_steps} must not be negative; the paper makes 1")
        self.until = None if until is None else number("until", until)
        if self.until is not None and not 0 < self.until < math.inf:
            raise ValueError(f"until={until} must be a positive distance, such as 1e-7")

    @abstractmethod
    def _prepare(self, fitting: Fitting) -> None:
        """Set `_vectors`, all that `_move` needs."""

    @abstractmethod
    def _move(self, rows: torch.Tensor) -> torch.Tensor:
        """Map unit rows [n, d], which may be overwritten, as before the centroid step; they need not be unit rows."""

    def _solve(self, fitting: Fitting) -> None:
        self._prepare(fitting)
        self._vectors["corrections"] = torch.empty(0, fitting.image.dim, dtype=torch.float64)
        if self.until is not None:
            self._correct_until(fitting, self.until)
            return
        for _ in range(self.centroid_steps):
            self._append(self._error(fitting))

    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        rows = self._move(rows)
        for correction in self._vector("corrections", rows):
            rows = renormalise_and_add(rows, correction)
        return renormalise(rows)

    def _correct_until(self, fitting: Fitting, until: float) -> None:
        goal, trace = fitting.image.mean, fitting.image.trace
        previous, plain, newton = math.inf, None, True
        while True:
            error = self._error(fitting)
            gap = float(torch.linalg.vector_norm(error))
            if gap < until:
                return
            if gap >= previous and plain is not None:  # Newton's step went astray: the plain one cannot
                self._vectors["corrections"] = self._vectors["corrections"][:-1].clone()
                self._append(plain)
                plain, newton = None, False
                continue
            if gap >= previous:
                raise ValueError(f"until={until} is out of reach: the gap stays at {gap:.1e}; raise until")
            if len(self._vectors["corrections"]) >= MOST_STEPS:
                raise ValueError(
                    f"until={until} is out of reach: the gap is still {gap:.1e} after {MOST_STEPS} steps; raise "
                    f"until, or choose another alignment"
                )
            previous, plain = gap, None
            if newton and gap < LINEAR_GAP * trace:
                plain, error = error, error + goal * (float(goal @ error) / trace)
            self._append(error)

    def _error(self, fitting: Fitting) -> torch.Tensor:
        """mu_x less the mean of the mapped text, with the corrections made so far."""
        return fitting.image.mean - self._mapped_mean(fitting)

    def _append(self, correction: torch.Tensor) -> None:
        self._vectors["corrections"] = torch.cat([self._vectors["corrections"], correction[None]])
