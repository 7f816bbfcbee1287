"""How the figures of sweeps look: colours of arms, ink, titles of panels, plain axes; and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from revision.files import write_png

# Okabe and Ito's palette: told apart by the colour-blind, too.
COLOURS = {"none": "#666666", "mean_shift": "#E69F00", "c3": "#009E73", "realign": "#0072B2", "pairs": "#CC79A7"}
_MORE_COLOURS = [
    "#D55E00",
    "#56B4E9",
    "#8C564B",
    "#B8A000",
    "#4B0082",
    "#2E8B57",
    "#A52A2A",
    "#708090",
    "#FF69B4",
    "#1E1E1E",
]
INK, FAINT = "#222222", "#8a8a8a"
TITLES = {
    "naming_r5": "naming R@5, by PMI (%)",
    "margin": "margin over other pictures (nats / token)",
    "token_nll": "caption NLL (nats / token)",
    "exact": "questions, exact match (%)",
}  # of panels, by metric


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, in full or not at all."""
    write_png(path, lambda file: figure.savefig(file, format="png", facecolor="white"))


def colour(arm: str, arms: Sequence[str]) -> str:
    """The colour of an arm: its own, or one of a few more in the order of `arms`."""
    others = [name for name in arms if name not in COLOURS]
    return COLOURS[arm] if arm in COLOURS else _MORE_COLOURS[others.index(arm) % len(_MORE_COLOURS)]


def plain(axis: Axes, *, grid: Literal["x", "y"] = "y") -> None:
    """No box, faint ticks, a faint grid across one axis."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    axis.grid(axis=grid, color="#ececec", linewidth=0.8)
    axis.set_axisbelow(True)
