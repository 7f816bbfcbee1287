"""Alignments of text embeddings to the image distribution, and the moments they are made of."""

from revision.alignment.base import Alignment, Statistics
from revision.alignment.images import ImageSide
from revision.alignment.methods import (
    C3,
    METHODS,
    Blockwise,
    Diagonal,
    GaussianOT,
    MeanShift,
    NoAlignment,
    Quantile,
    ReAlign,
    ResidualNoise,
    ShrunkOT,
    Unicorn,
    build_alignment,
    load_alignment,
)
from revision.alignment.moments import Detail, Moments

__all__ = [
    "C3",
    "METHODS",
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
