"""What all figures of the geometry report look like: thin lines, one palette, small type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from revision.files import write_png

# Okabe and Ito's palette, which the colour-blind tell apart too; dashes do the same in a black-and-white print.
IMAGE, TEXT = "#0072B2", "#D55E00"
ALIGNED = (
    "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#666666",  # further ones for those who compare many
    "#6A3D9A", "#B2DF8A", "#FB9A99", "#17337A", "#999933", "#AA4499",
)  # fmt: skip
DASHES = ((0, (4, 1, 1, 1)), (0, (1, 1)), (0, (6, 1.5)), (0, (4, 1, 1, 1, 1, 1)), (0, (3, 2)), (0, (2, 1)))
GREY = "#666666"
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "savefig.dpi": 220,
}


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, in full or not at all; draw it within `mpl.rc_context(STYLE)`."""
    with mpl.rc_context(STYLE):
        write_png(path, lambda file: figure.savefig(file, format="png"))
    return path


def colour(name: str, methods: Sequence[str]) -> str:
    """Colour of a cloud: `image`, `text`, or one of the methods, whose places in the list decide."""
    fixed = {"image": IMAGE, "text": TEXT}
    return fixed[name] if name in fixed else ALIGNED[methods.index(name) % len(ALIGNED)]


def dash(name: str, methods: Sequence[str]) -> Any:
    """Line style of a cloud, as `colour`."""
    fixed = {"image": "-", "text": "--"}
    return fixed[name] if name in fixed else DASHES[methods.index(name) % len(DASHES)]
