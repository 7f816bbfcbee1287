"""The towers: a small network over the segments of a program, and heads of both sides into one space."""

from __future__ import annotations

import math

import torch
from torch import nn

from .program import COORDINATES, FEATURES

DIM = 128  # of the shared space
_WIDTH = 128
_OCTAVES = 4  # sine and cosine of each coordinate at 1, 2, 4 and 8 times pi


class ProgramTower(nn.Module):
    """Segments to one feature: each by itself, then with its neighbours in the program, then mean and maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Linear(FEATURES + 2 * _OCTAVES * COORDINATES, _WIDTH)
        self.beside = nn.Conv1d(_WIDTH, _WIDTH, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = _head(2 * _WIDTH)

    def forward(self, programs: torch.Tensor) -> torch.Tensor:
        """Features [n, DIM] of programs, float32 [n, SEGMENTS, FEATURES] as `program.to_tensor` makes them."""
        real = programs[..., -1:]
        octaves = math.pi * 2.0 ** torch.arange(_OCTAVES, device=programs.device)
        angles = (programs[..., :COORDINATES, None] * octaves).flatten(2)
        found = torch.cat([programs, angles.sin(), angles.cos()], dim=-1)
        found = nn.functional.gelu(self.alone(found)) * real
        found = found + nn.functional.gelu(self.beside(found.transpose(1, 2)).transpose(1, 2))
        found = self.norm(found) * real
        mean = found.sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
        most = found.masked_fill(real == 0, -torch.inf).amax(dim=1)
        features: torch.Tensor = self.head(torch.cat([mean, most], dim=-1))
        return features


class Heads(nn.Module):
    """All that is trained: the tower of the programs, and the head on a locked text tower's features.

    Args:
        text_width: of the text tower's features.
    """

    def __init__(self, text_width: int) -> None:
        super().__init__()
        self.program = ProgramTower()
        self.text = _head(text_width)


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
