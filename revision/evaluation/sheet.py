"""The contact sheet: test pictures with their right names and what each model says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from revision.evaluation.benchmarks import Picture
from revision.evaluation.metrics import Row
from revision.files import write_png
from revision.pictures import open_picture

_SIDE, _GAP, _MARGIN = 232, 16, 36  # pixels: picture, between cards, around the sheet
_PAD = 12  # pixels inside a card
_WHITE, _PAPER, _INK, _GREY, _LINE = "#ffffff", "#f4f4f2", "#1b1b1b", "#6d6d6d", "#dddddb"
_RIGHT, _NEAR, _WRONG = "#12805c", "#b07a00", "#b3362b"
_CAPTION_LINES = 3


@dataclass(frozen=True)
class _Fonts:
    """The four faces of the sheet, in the sizes that it uses."""

    title: ImageFont.FreeTypeFont
    bold: ImageFont.FreeTypeFont
    plain: ImageFont.FreeTypeFont
    small: ImageFont.FreeTypeFont

    @classmethod
    def load(cls) -> _Fonts:
        """The fonts that come with matplotlib, so that sheets look alike everywhere."""
        regular = findfont(FontProperties(family="DejaVu Sans"))
        heavy = findfont(FontProperties(family="DejaVu Sans", weight="bold"))
        return cls(
            title=ImageFont.truetype(heavy, 24),
            bold=ImageFont.truetype(heavy, 16),
            plain=ImageFont.truetype(regular, 15),
            small=ImageFont.truetype(regular, 14),
        )


def draw_pictures(pictures: Mapping[str, Sequence[Picture]], count: int, seed: int) -> list[Picture]:
    """About `count` pictures, the same number from every track, at random: a sheet is not a choice of the best."""
    random = np.random.default_rng(seed)
    share = -(-count // len(pictures))
    chosen: list[Picture] = []
    for items in pictures.values():
        chosen += [items[i] for i in np.sort(random.permutation(len(items))[:share])]
    return chosen[:count]


def draw_sheet(
    path: Path, pictures: Sequence[Picture], said: Mapping[str, Mapping[str, Row]], *, title: str, columns: int = 6
) -> None:
    """Draws the pictures as cards in a grid and writes a PNG.

    said: for each model, its picture rows by picture id (`naming.read_pictures_aloud`). A card shows the right name,
    and for each model its best name by PMI (green where right, amber where the right one is among its top five, red
    elsewhere), the right name's rank, and its greedy caption.
    A file that is no picture, since the encoder reads something else, or that is not there, since the store is all that
    scores need, shows its name.
    """
    fonts = _Fonts.load()
    columns = min(columns, len(pictures))
    cards = [_card(picture, {model: rows[picture.id] for model, rows in said.items()}, fonts) for picture in pictures]
    height = max(card.height for card in cards)
    lines = -(-len(cards) // columns)
    head = 84
    sheet = Image.new(
        "RGB",
        (2 * _MARGIN + columns * (cards[0].width + _GAP) - _GAP, 2 * _MARGIN + head + lines * (height + _GAP) - _GAP),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    width = sheet.width - 2 * _MARGIN
    draw.text((_MARGIN, _MARGIN), _shortened(title, fonts.title, width), font=fonts.title, fill=_INK)
    legend = (
        "Under each picture its right name; for each model its best name by PMI, #rank of the right one, and its "
        "greedy caption. Green: right; amber: the right name is among the best five; red: it is not."
    )
    draw.text((_MARGIN, _MARGIN + 40), _shortened(legend, fonts.plain, width), font=fonts.plain, fill=_GREY)
    for place, card in enumerate(cards):
        corner = (
            _MARGIN + place % columns * (card.width + _GAP),
            _MARGIN + head + place // columns * (height + _GAP),
        )
        draw.rectangle((*corner, corner[0] + card.width - 1, corner[1] + height - 1), fill=_WHITE, outline=_LINE)
        sheet.paste(card.crop((1, 1, card.width - 1, card.height - 1)), (corner[0] + 1, corner[1] + 1))
    write_png(path, lambda file: sheet.save(file, format="png"))


def _card(picture: Picture, rows: Mapping[str, Row], fonts: _Fonts) -> Image.Image:
    """One card, as high as its texts need at most, so that all cards of a sheet share one grid."""
    width = _SIDE + 2 * _PAD
    block = 22 + 20 + _CAPTION_LINES * 18 + 10
    card = Image.new("RGB", (width, _PAD + _SIDE + 40 + block * len(rows) + _PAD), _WHITE)
    draw = ImageDraw.Draw(card)
    thumbnail = _thumbnail(picture.path, fonts)
    card.paste(thumbnail, (_PAD + (_SIDE - thumbnail.width) // 2, _PAD + (_SIDE - thumbnail.height) // 2))
    y = _PAD + _SIDE + 10
    track_width = int(fonts.small.getlength(picture.track))
    draw.text((_PAD, y), _shortened(picture.name, fonts.bold, _SIDE - track_width - 8), font=fonts.bold, fill=_INK)
    draw.text((_PAD + _SIDE - track_width, y + 2), picture.track, font=fonts.small, fill=_GREY)
    y += 30
    for model, row in rows.items():
        draw.line((_PAD, y - 4, _PAD + _SIDE, y - 4), fill=_LINE)
        rank = f"#{row['rank']}"
        colour = _RIGHT if row["rank"] == 1 else _NEAR if row["rank"] <= 5 else _WRONG
        draw.text((_PAD, y + 2), model, font=fonts.small, fill=_GREY)
        draw.text((_PAD + _SIDE - fonts.small.getlength(rank), y + 2), rank, font=fonts.small, fill=colour)
        draw.text((_PAD, y + 22), _shortened(row["top"][0], fonts.bold, _SIDE), font=fonts.bold, fill=colour)
        for number, line in enumerate(_wrapped(row["says"], fonts.small, _SIDE, _CAPTION_LINES)):
            draw.text((_PAD, y + 44 + 18 * number), line, font=fonts.small, fill=_INK)
        y += block
    return card


def _thumbnail(path: Path, fonts: _Fonts) -> Image.Image:
    """A picture, at most _SIDE pixels wide and high; what cannot be drawn is a square with the file's name."""
    try:
        picture = open_picture(path)
    except ValueError:
        picture = Image.new("RGB", (_SIDE, _SIDE), _PAPER)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, 0, _SIDE - 1, _SIDE - 1), outline=_LINE)
        name = _shortened(path.name, fonts.small, _SIDE - 2 * _PAD)
        draw.text((_SIDE / 2, _SIDE / 2), name, font=fonts.small, fill=_GREY, anchor="mm")
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return picture


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Text broken at blanks into at most `lines` lines of a width in pixels; an ellipsis marks what is cut."""
    broken: list[str] = []
    for word in text.split():
        if broken and font.getlength(f"{broken[-1]} {word}") <= width:
            broken[-1] += f" {word}"
        else:
            broken.append(word)
    kept = broken[:lines]
    if len(broken) > lines:
        kept[-1] += " …"
    return [_shortened(line, font, width) for line in kept]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """One line of text, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
