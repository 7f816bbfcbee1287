"""The fixed-frame trace of a training run: one line a measurement, from the reference step on (ReVision v3, Fig. 1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from revision.geometry import frame

TRACE = "trace.jsonl"  # in the folder of `contrast`
DRIFT_FLOOR = 1e-12  # eps of the relative drift, should there be no passive bias at the reference step

Measured: TypeAlias = dict[str, float | None]

ALWAYS = ("step", "rank", "energy", "gap", "beta", "gamma")  # numbers of every line; those of the panels may be null
OF_PANELS = (
    "leak", "sin_theta", "leak_present", "stability", "drift", "condition_u", "rho_eig", "condition_v", "gamma_angle",
)  # fmt: skip


class FrameTrace:
    """Follows the modality gap of probe pairs in the frame of the step it first sees.

    Args:
        file: JSON lines, made anew.
        batches: which probe pairs form a batch of the loss whose gradients are looked at; integer [b] each. In none of
            them may a picture or text occur twice.
        energy: see `frame.fit_frame`.
    """

    def __init__(self, file: Path, *, batches: Sequence[np.ndarray], energy: float) -> None:
        self._file = file
        self._batches = batches
        self._energy = energy
        self._frame: frame.Frame | None = None
        self._first = np.empty(0)
        self._last: np.ndarray | None = None
        file.write_text("")

    def record(self, step: int, images: np.ndarray, texts: np.ndarray, logit_scale: float) -> Measured:
        """Measures one step and appends it to the file.

        The subspace of the present step, for sin theta, has the dimension of U. Gradients are those of both sides
        together; so is their covariance, Cov(g_x) + Cov(g_y), as in the paper's Sigma. What is undefined is None.

        Args:
            images, texts: unit rows [n, d], row i of both the probe pair i; float32 or float64.
            logit_scale: of the model at this step.

        Returns:
            `step`; `rank` r of U and `energy`, its share of the present trace of Sigma; `gap`, `beta` and `gamma`, the
            norms of the mean gap and of its parts in U and V; and the panels of the paper's figure:
            a. `leak`, `sin_theta`, and `leak_present`, the leakage out of the subspace of the present step, which is
               what the paper's bound takes to be zero;
            b. `stability`, cos(gamma(t), gamma(t-1)) with t-1 the measurement before, and `drift`,
               ||gamma(t) - gamma(t0)|| / ||gamma(t0)||;
            c. `condition_u` of Cov(delta) and `rho_eig`;
            d. `condition_v` of Cov(zeta) and `gamma_angle`, in degrees, of gamma and its first eigenvector.

        Raises:
            ValueError: see `frame.fit_frame`.
        """
        images, texts = images.astype(np.float64), texts.astype(np.float64)
        if self._frame is None:
            self._frame = frame.fit_frame(images, texts, self._energy)
        fixed = self._frame
        rank = fixed.u.shape[1]
        values, vectors = frame.eigenbasis(images, texts)
        parts = frame.decompose(images, texts, fixed)
        within, outside = frame.Spread.of(parts.delta), frame.Spread.of(parts.zeta)
        sides = [frame.contrastive_gradients(images[batch], texts[batch], logit_scale) for batch in self._batches]
        by_image, by_text = (np.concatenate(side) for side in zip(*sides, strict=True))
        gradients = np.concatenate([by_image, by_text])
        steering = frame.covariance(by_image @ fixed.u) + frame.covariance(by_text @ fixed.u)
        if self._last is None:
            self._first = parts.gamma
        measured: Measured = {
            "step": step,
            "rank": rank,
            "energy": float(sum((rows @ fixed.u).var(axis=0).sum() for rows in (images, texts)) / values.sum()),
            "gap": float(np.hypot(np.linalg.norm(parts.beta), np.linalg.norm(parts.gamma))),
            "beta": float(np.linalg.norm(parts.beta)),
            "gamma": float(np.linalg.norm(parts.gamma)),
            "leak": frame.share_outside(gradients, fixed.v),
            "sin_theta": frame.sine_of_largest_angle(vectors[:, :rank], fixed),
            "leak_present": frame.share_outside(gradients, vectors[:, rank:]),
            "stability": None if self._last is None else frame.cosine(parts.gamma, self._last),
            "drift": float(
                np.linalg.norm(parts.gamma - self._first) / max(float(np.linalg.norm(self._first)), DRIFT_FLOOR)
            ),
            "condition_u": within.condition_number,
            "rho_eig": frame.eigenvalue_correlation(within.covariance, steering),
            "condition_v": outside.condition_number,
            "gamma_angle": outside.angle_to_first_axis(parts.gamma),
        }
        self._last = parts.gamma
        with self._file.open("a") as file:
            file.write(json.dumps(measured) + "\n")
        return measured


def read_trace(file: Path) -> list[Measured]:
    """The lines of a trace, in order.

    Raises:
        ValueError: the file does not exist, is not JSON lines, holds none, or holds one that is no measurement.
    """
    if not file.is_file():
        raise ValueError(f"trace {file} does not exist: run `revision contrast` first")
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{file} is not a trace ({error}): run `revision contrast` again") from error
    if not lines:
        raise ValueError(f"{file} is not a trace (it has no line): run `revision contrast` again")
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or (wrong := [name for name in (*ALWAYS, *OF_PANELS) if not _fits(line, name)]):
            what = f"{wrong[0]} must be a number" if isinstance(line, dict) else "it must be a mapping"
            raise ValueError(f"{file} is not a trace (line {number}: {what}): run `revision contrast` again")
    return lines


def _fits(line: Measured, name: str) -> bool:
    """Whether a line has a quantity as a number, or as null where that is allowed."""
    return type(line.get(name)) in (int, float) or (name in OF_PANELS and name in line and line[name] is None)
