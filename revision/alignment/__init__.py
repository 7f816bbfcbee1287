"""Alignments of text embeddings to the image distribution, and the moments they are made of."""

from revision.alignment.base import Alignment, Statistics
from revision.alignment.methods import C3, METHODS, MeanShift, NoAlignment, ReAlign, build_alignment, load_alignment
from revision.alignment.moments import Moments

__all__ = [
    "C3",
    "METHODS",
    "Alignment",
    "MeanShift",
    "Moments",
    "NoAlignment",
    "ReAlign",
    "Statistics",
    "build_alignment",
    "load_alignment",
]
