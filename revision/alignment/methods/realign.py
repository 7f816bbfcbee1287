"""ReAlign: anchor, trace and centroid alignment (ReVision v3, Sec. 4)."""

from __future__ import annotations

import math

import torch

from revision.alignment.centroid import CentroidCorrected
from revision.alignment.chain import Chain
from revision.alignment.fitting import Fitting
from revision.alignment.settings import flag


class ReAlign(CentroidCorrected):
    """Anchor, trace and centroid alignment (ReVision v3, Sec. 4).

        s  = sqrt(T_x / T_y)
        e' = norm(mu_x + s (e - mu_y))          anchor and trace
        e^ = norm(e' - mu' + mu_x)              centroid, with mu' = E[e'] over the text

    Needs: means and traces of both sides, and one more pass over the text for each centroid step.
    Open: what the ablations leave in place of a step. Here the trace step without the anchor scales about the text's
    own mean, and the centroid step, wherever it is made, moves the mean to mu_x.

    Args:
        centroid_steps: times the centroid correction is made; 1 is the paper, 0 leaves it out.
        until: instead, correct until the centroid gap over the fitted rows (in float64) is below this.
        anchor: move the mean to mu_x; False leaves the first step out.
        trace: scale deviations by s; False leaves the second step out.

    Raises:
        ValueError: as `CentroidCorrected`; when fitting, a side whose rows are all equal.
    """

    method = "realign"

    def __init__(
        self, centroid_steps: int = 1, until: float | None = None, anchor: bool = True, trace: bool = True
    ) -> None:
        super().__init__(centroid_steps, until)
        self.anchor, self.trace = flag("anchor", anchor), flag("trace", trace)

    @property
    def scale(self) -> float:
        """s = sqrt(T_x / T_y), or one without the trace step."""
        assert self.statistics
        return float(self._vectors["scale"])

    def _prepare(self, fitting: Fitting) -> None:
        text, image = fitting.text, fitting.image
        scale = 1.0
        if self.trace:
            fitting.check_spread("ReAlign")
            scale = math.sqrt(image.trace / text.trace)
        middle = image.mean if self.anchor else text.mean
        self._vectors = {
            "scale": torch.tensor(scale, dtype=torch.float64),
            "offset": middle - scale * text.mean,
        }

    def _move(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.add(self._vector("offset", rows), rows, alpha=float(self._vectors["scale"]), out=rows)

    def _chain(self) -> Chain:
        vectors = torch.cat([self._vectors["offset"][None], self._vectors["corrections"]])
        return Chain(float(self._vectors["scale"]), vectors)
