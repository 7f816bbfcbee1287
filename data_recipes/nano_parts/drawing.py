"""Pictures: glyphs on coloured backgrounds, alone or composed into scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .packages import FONT, find

GLYPH = 144  # pixels of a glyph's longer side as it is kept
PICTURE = 160  # pixels of a picture's side: what the image tower sees

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (25, 25, 25),
    "gray": (150, 150, 150),
    "red": (225, 60, 60),
    "orange": (245, 150, 50),
    "yellow": (250, 220, 80),
    "green": (90, 180, 90),
    "blue": (80, 130, 220),
    "purple": (150, 90, 190),
    "pink": (245, 160, 190),
    "brown": (140, 95, 60),
}

# Centres of 1 to 4 glyphs as shares of the side, and the size of each.
LAYOUTS: dict[int, tuple[list[tuple[float, float]], float]] = {
    1: ([(0.5, 0.5)], 0.9),
    2: ([(0.27, 0.5), (0.73, 0.5)], 0.46),
    3: ([(0.5, 0.27), (0.27, 0.73), (0.73, 0.73)], 0.46),
    4: ([(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)], 0.46),
}


@dataclass(frozen=True)
class Placement:
    """How a single glyph lies in its picture: size and centre as shares of the side, turn in degrees."""

    size: float = 0.9
    centre: tuple[float, float] = (0.5, 0.5)
    turn: float = 0.0


def fit_glyph(image: Image.Image) -> Image.Image:
    """A drawing cropped to what is visible and centred on a transparent square of GLYPH pixels, RGBA."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    scale = GLYPH / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    square = Image.new("RGBA", (GLYPH, GLYPH), (255, 255, 255, 0))
    square.paste(image, ((GLYPH - image.width) // 2, (GLYPH - image.height) // 2))
    return square


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(find(*FONT), GLYPH)


@lru_cache(maxsize=4096)
def openmoji(character: str) -> Image.Image:
    """The OpenMoji drawing of an emoji, RGBA [GLYPH, GLYPH]."""
    canvas = Image.new("RGBA", (2 * GLYPH, 2 * GLYPH), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((GLYPH, GLYPH), character, font=_font(), embedded_color=True, anchor="mm")
    assert canvas.getchannel("A").getbbox(), f"the font has no drawing of {character!r}"
    return fit_glyph(canvas)


def single(glyph: Image.Image, colour: str, placement: Placement) -> Image.Image:
    """One glyph on a plain background, RGB [PICTURE, PICTURE]."""
    canvas = Image.new("RGB", (PICTURE, PICTURE), COLOURS[colour])
    _paste(canvas, glyph, placement)
    return canvas


def scene(glyphs: Sequence[Image.Image], colour: str) -> Image.Image:
    """Up to four glyphs side by side on a plain background, RGB [PICTURE, PICTURE]."""
    centres, size = LAYOUTS[len(glyphs)]
    canvas = Image.new("RGB", (PICTURE, PICTURE), COLOURS[colour])
    for glyph, centre in zip(glyphs, centres, strict=True):
        _paste(canvas, glyph, Placement(size, centre))
    return canvas


def _paste(canvas: Image.Image, glyph: Image.Image, placement: Placement) -> None:
    side = round(PICTURE * placement.size)
    turned = glyph.rotate(placement.turn, Image.Resampling.BICUBIC) if placement.turn else glyph
    small = turned.resize((side, side), Image.Resampling.BICUBIC)
    corner = tuple(round(PICTURE * share - side / 2) for share in placement.centre)
    canvas.paste(small, (corner[0], corner[1]), small)


def random_placement(rng: np.random.Generator) -> Placement:
    """Size, place and turn of a single glyph in a training picture."""
    size = float(rng.uniform(0.5, 1.0))
    slack = max(0.0, 0.5 - size / 2)
    x, y = rng.uniform(-slack, slack, 2) * (size < 0.75)
    turn = float(rng.uniform(-15, 15)) if rng.random() < 0.3 else 0.0
    return Placement(size, (0.5 + float(x), 0.5 + float(y)), turn)


def random_colour(rng: np.random.Generator, white: float = 0.5) -> str:
    """A background colour; white with that probability at least."""
    names = list(COLOURS)
    return "white" if rng.random() < white else names[int(rng.integers(len(names)))]


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=1)
