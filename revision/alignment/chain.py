"""Maps that shift a row and put it back on the sphere, once or more: the mean of the results, without the results."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# A squared length below this share of its terms has lost more digits to their cancelling than a mean may.
LEAST_SQUARE = 1e-3


@dataclass(frozen=True)
class Chain:
    """The map  u -> norm(... norm(norm(s u + v_0) + v_1) ... + v_k)  of unit rows u.

    Whatever k is, a result is a u + sum_j b_j v_j, and its factors a, b_j follow from the products u . v_j and those of
    the v_j among themselves. So the mean over rows takes k + 2 products of a matrix and a vector, where mapping them
    takes four passes over the block, which are written too, for each step.

    Attributes:
        scale: s.
        vectors: v_0 ... v_k, float64 [k + 1, d] on the CPU.
    """

    scale: float
    vectors: torch.Tensor

    def mean(self, rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor | None:
        """Mean of the mapped directions of rows.

        Args:
            rows: float64 [n, d] on any device, of any norms; left unchanged.
            norms: their norms, float64 [n, 1].

        Returns:
            float64 [d] on that device; None where a row comes so close to the origin on its way that float64 would lose
            digits by this route.
        """
        vectors, lengths = self.vectors.to(rows.device), norms[:, 0]
        products = torch.stack([torch.mv(rows, vector) for vector in vectors]) / lengths
        factors = self._factors(products)
        if factors is None:
            return None
        of_row, of_vectors = factors
        return torch.mv(rows.T, of_row / lengths) / len(rows) + of_vectors.mean(dim=1) @ vectors

    def _factors(self, products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """a [n] and b [k + 1, n] of each row, from u . v_j [k + 1, n]; None where digits would be lost."""
        gram = (self.vectors @ self.vectors.T).tolist()
        of_row = torch.full_like(products[0], self.scale)
        of_vectors = torch.zeros_like(products)
        own = self.scale**2  # squared length of what the next vector is added to
        for step, product in enumerate(products):
            inner = of_row * product
            for before in range(step):
                inner.add_(of_vectors[before], alpha=gram[step][before])
            square = inner.mul_(2).add_(own + gram[step][step])
            if float(square.min()) < LEAST_SQUARE * (own + gram[step][step]):
                return None
            shrink = square.rsqrt_()
            of_vectors[step] = 1.0
            of_row *= shrink
            of_vectors[: step + 1] *= shrink
            own = 1.0
        return of_row, of_vectors
