"""Alignments of text embeddings to the image distribution, and the moments they are made of.

The names below load their modules when they are first used: the rules of the configuration ask this room which methods
there are, and must answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from revision.alignment.base import Alignment
    from revision.alignment.images import ImageSide
    from revision.alignment.loading import build_alignment, load_alignment
    from revision.alignment.methods.blockwise import Blockwise
    from revision.alignment.methods.c3 import C3
    from revision.alignment.methods.diagonal import Diagonal
    from revision.alignment.methods.gaussian_ot import GaussianOT
    from revision.alignment.methods.mean_shift import MeanShift
    from revision.alignment.methods.none import NoAlignment
    from revision.alignment.methods.quantile import Quantile
    from revision.alignment.methods.realign import ReAlign
    from revision.alignment.methods.residual_noise import ResidualNoise
    from revision.alignment.methods.shrunk_ot import ShrunkOT
    from revision.alignment.methods.unicorn import Unicorn
    from revision.alignment.moments import Detail, Moments
    from revision.alignment.statistics import Statistics

_HOMES = {
    "Alignment": "base",
    "Blockwise": "methods.blockwise",
    "C3": "methods.c3",
    "Detail": "moments",
    "Diagonal": "methods.diagonal",
    "GaussianOT": "methods.gaussian_ot",
    "ImageSide": "images",
    "MeanShift": "methods.mean_shift",
    "Moments": "moments",
    "NoAlignment": "methods.none",
    "Quantile": "methods.quantile",
    "ReAlign": "methods.realign",
    "ResidualNoise": "methods.residual_noise",
    "ShrunkOT": "methods.shrunk_ot",
    "Statistics": "statistics",
    "Unicorn": "methods.unicorn",
    "build_alignment": "loading",
    "load_alignment": "loading",
}

__all__ = [
    "C3",
    "Alignment",
    "Blockwise",
    "Detail",
    "Diagonal",
    "GaussianOT",
    "ImageSide",
    "MeanShift",
    "Moments",
    "NoAlignment",
    "Quantile",
    "ReAlign",
    "ResidualNoise",
    "ShrunkOT",
    "Statistics",
    "Unicorn",
    "build_alignment",
    "load_alignment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
