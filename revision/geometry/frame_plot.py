"""The fixed-frame trace drawn as the paper's figure: four panels over the training step (ReVision v3, Fig. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.geometry.frame_trace import Measured
from revision.geometry.style import GREY, IMAGE, STYLE, TEXT, save

LEFT, RIGHT = IMAGE, TEXT  # two colours of the one palette; each axis has the colour of its curve
_MARKED = 25  # measurements up to which each gets a dot


def save_frame_figure(trace: Sequence[Measured], file: Path) -> None:
    """Draws the four panels into a PNG file, which is there in full or not at all."""
    with mpl.rc_context(STYLE):
        save(draw_frame(trace), file)


def draw_frame(trace: Sequence[Measured]) -> Figure:
    """The four panels.

    Args:
        trace: lines of `FrameTrace.record`, one or more; what is None in them leaves a hole in its curve.
    """
    figure = Figure(figsize=(7.4, 5.2), layout="constrained")
    (leaking, bias), (inside, outside) = figure.subplots(2, 2, sharex=True)
    _curve(leaking, trace, "leak", LEFT, "-", "leakage of gradients into V")
    _curve(leaking, trace, "sin_theta", RIGHT, "--", "sin θ(U$_t$, U)")
    _curve(leaking, trace, "leak_present", GREY, ":", "leakage out of U$_t$")
    leaking.set_ylim(0, 1.05)
    leaking.set_ylabel("share (RMS)")
    leaking.legend(loc="best")
    drift = _two_axes(bias, trace, ("stability", "cos(γ$_t$, γ$_{t-1}$)"), ("drift", "‖γ$_t$ − γ$_{t0}$‖ / ‖γ$_{t0}$‖"))
    drift.set_ylim(bottom=0)
    _from_zero_to_one(bias, trace, "stability")
    correlation = _two_axes(inside, trace, ("condition_u", "condition number of Cov(δ)"), ("rho_eig", "ρ$_{eig}$"))
    _from_zero_to_one(correlation, trace, "rho_eig")
    angle = _two_axes(outside, trace, ("condition_v", "condition number of Cov(ζ)"), ("gamma_angle", "angle of γ (°)"))
    angle.set_ylim(0, 95)
    angle.set_yticks([0, 30, 60, 90])
    titles = ("a  leakage and turn of U", "b  passive orthogonal bias γ", "c  inside U", "d  inside V")
    for panel, title in zip((leaking, bias, inside, outside), titles, strict=True):
        panel.set_title(title, loc="left")
    for panel, name in ((inside, "condition_u"), (outside, "condition_v")):
        panel.set_xlabel("training step")
        if any(line[name] is not None for line in trace):  # matplotlib refuses a log axis without a number
            panel.set_yscale("log")
    first = trace[0]
    figure.suptitle(f"frame frozen at step {first['step']:.0f}: U has {first['rank']:.0f} axes", fontsize=8.5)
    return figure


def _two_axes(panel: Axes, trace: Sequence[Measured], left: tuple[str, str], right: tuple[str, str]) -> Axes:
    """One quantity on the left axis and one on the right, each a name and a label; returns the right axis."""
    other = panel.twinx()
    other.spines["right"].set_visible(True)
    for axis, (name, label), colour, dash in ((panel, left, LEFT, "-"), (other, right, RIGHT, "--")):
        _curve(axis, trace, name, colour, dash, label)
        axis.set_ylabel(label, color=colour)
        axis.tick_params(axis="y", which="both", colors=colour)
    return other


def _from_zero_to_one(axis: Axes, trace: Sequence[Measured], name: str) -> None:
    """The whole range of a cosine or correlation, so that what hardly changes does not look as if it did."""
    negative = any(value is not None and value < 0 for value in (line[name] for line in trace))
    axis.set_ylim(-1.05 if negative else 0, 1.05)


def _curve(axis: Axes, trace: Sequence[Measured], name: str, colour: str, dash: str, label: str) -> None:
    steps = np.array([line["step"] for line in trace], dtype=np.float64)
    values = np.array([line[name] for line in trace], dtype=np.float64)  # None becomes NaN, which is not drawn
    marker = "o" if len(trace) <= _MARKED else ""
    axis.plot(steps, values, color=colour, linestyle=dash, marker=marker, markersize=2.5, label=label)
