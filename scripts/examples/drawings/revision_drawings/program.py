"""SVG files as programs: the strokes that a pen would make, in their order and with their paint; never pixels.

Everything becomes cubic Bezier segments (SVG 1.1, Sec. 8 and 9; fontTools reads paths and shapes). What this example
cannot read, such as texts, gradients or style sheets, is refused with the reason. Opacity, line caps and joins, dashes
and fill rules are ignored.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from math import radians
from typing import Any

import numpy as np
import torch
from fontTools.misc.transform import Identity, Transform
from fontTools.pens.basePen import BasePen
from fontTools.svgLib.path.parser import parse_path
from fontTools.svgLib.path.shapes import PathBuilder
from PIL import ImageColor

from revision.pictures import Picture, read_bytes

SEGMENTS = 128  # of a program that the encoder reads; of a longer one, as many evenly spaced ones
# Columns: 8 coordinates of the 4 control points in [-1, 1] where they lie inside the view box; 3 of the fill's colour,
# and whether there is one; the same of the stroke, and its width; place in the program; whether it is a segment at all.
FEATURES = 19
COORDINATES = 8

_SHAPES = {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
_SILENT = {"title", "desc", "metadata"}
_MOST_BYTES = 1 << 20
_INHERITED = {"fill": "black", "stroke": "none", "stroke-width": "1"}  # the initial values of SVG
_TRANSFORMS = re.compile(r"\s*(\w+)\s*\(([^)]*)\)[\s,]*")

Paint = tuple[float, float, float, float]  # red, green, blue in [0, 1], and 1 where anything is painted


def read_program(path: Picture) -> np.ndarray:
    """The segments of an SVG file, float32 [n, FEATURES - 1]: all columns but the last.

    Raises:
        ValueError: no such file, no SVG, or one without a view box or strokes, or with something that is not read here.
    """
    content = read_bytes(path)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"drawing {path} has {len(content)} bytes, more than {_MOST_BYTES}; simplify it")
    try:
        root = ET.fromstring(content)
    except ET.ParseError as error:
        raise ValueError(f"{path} is no SVG drawing: {error}") from error
    if _local(root.tag) != "svg":
        raise ValueError(f"{path} is no SVG drawing: it begins with <{_local(root.tag)}>")
    root.tag = "g"  # from here on a group; another <svg> inside would have a view box of its own
    try:
        corner, side = _view_box(root)
        strokes = [
            _columns(segments, paints, corner, side) for segments, paints in _walk(root, Transform(), _INHERITED)
        ]
    except (ValueError, IndexError, TypeError, OverflowError) as error:  # IndexError: fontTools', of a path cut short
        raise ValueError(f"drawing {path} cannot be read: {error}") from error
    rows = np.concatenate([np.empty((0, FEATURES - 2)), *strokes]).astype(np.float32)
    if not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"drawing {path} has no strokes, or some that lie at infinity; draw something")
    place = np.linspace(0, 1, len(rows), dtype=np.float32)[:, None]
    return np.concatenate([rows, place], axis=1)


def to_tensor(program: np.ndarray) -> torch.Tensor:
    """What `read_program` gave as float32 [SEGMENTS, FEATURES], thinned out or filled up with zeros."""
    if len(program) > SEGMENTS:
        program = program[np.linspace(0, len(program) - 1, SEGMENTS).round().astype(int)]
    tensor = torch.zeros(SEGMENTS, FEATURES)
    tensor[: len(program), :-1] = torch.from_numpy(np.ascontiguousarray(program))
    tensor[: len(program), -1] = 1.0
    return tensor


class _Segments(BasePen):
    """Collects what is drawn as cubic segments: four complex points each."""

    def __init__(self) -> None:
        super().__init__(None)
        self.found: list[tuple[complex, complex, complex, complex]] = []
        self._at = 0j

    def _moveTo(self, pt: tuple[float, float]) -> None:  # noqa: N802
        self._at = complex(*pt)

    def _lineTo(self, pt: tuple[float, float]) -> None:  # noqa: N802
        start, end = self._at, complex(*pt)
        self._add(start + (end - start) / 3, start + (end - start) * 2 / 3, end)

    def _curveToOne(self, pt1: tuple[float, float], pt2: tuple[float, float], pt3: tuple[float, float]) -> None:  # noqa: N802
        self._add(complex(*pt1), complex(*pt2), complex(*pt3))

    def _add(self, first: complex, second: complex, end: complex) -> None:
        self.found.append((self._at, first, second, end))
        self._at = end


def _walk(
    element: ET.Element, above: Transform, inherited: Mapping[str, str]
) -> Iterator[tuple[np.ndarray, tuple[Paint, Paint, float]]]:
    """Yields (segments as complex [n, 4], fill, stroke and its width) of each shape, in the order of painting."""
    name = _local(element.tag)
    if name in _SILENT:
        return
    if name != "g" and name not in _SHAPES:
        raise ValueError(f"<{name}> is neither a group nor one of {', '.join(sorted(_SHAPES))}")
    said = {**element.attrib, **_style(element.get("style", ""))}
    paint = {**inherited, **{key: said[key] for key in _INHERITED if key in said}}
    here = above.transform(_transform(said.get("transform", "")))
    if name == "g":
        for child in element:
            yield from _walk(child, here, paint)
        return
    scale = abs(here[0] * here[3] - here[1] * here[2]) ** 0.5
    width = float(paint["stroke-width"].removesuffix("px")) * scale
    segments = _segments(element, here)
    if len(segments):
        yield segments, (_paint(paint["fill"]), _paint(paint["stroke"]), width)


def _segments(shape: ET.Element, here: Transform) -> np.ndarray:
    builder, pen = PathBuilder(), _Segments()
    plain = {key: value for key, value in shape.attrib.items() if key != "transform"}  # `here` has it already
    builder.add_path_from_element(ET.Element(shape.tag, plain))
    for data in builder.paths:
        parse_path(data, pen)
    points = np.array(pen.found, dtype=complex).reshape(-1, 4)
    a, b, c, d, e, f = here
    x, y = points.real, points.imag
    return (a * x + c * y + e) + 1j * (b * x + d * y + f)


def _columns(
    segments: np.ndarray, paints: tuple[Paint, Paint, float], corner: complex, side: float
) -> np.ndarray:  # fmt: skip
    """float64 [n, FEATURES - 2]: coordinates relative to the view box, fill, stroke, width."""
    fill, stroke, width = paints
    points = 2 * (segments - corner) / side - (1 + 1j)
    coordinates = np.stack([points.real, points.imag], axis=2).reshape(-1, COORDINATES)
    painted = np.tile([*fill, *stroke, width / side * bool(stroke[3])], (len(segments), 1))
    return np.concatenate([coordinates, painted], axis=1)


def _view_box(root: ET.Element) -> tuple[complex, float]:
    """Upper left corner of the square around the view box, and its side."""
    numbers = [float(word) for word in re.split(r"[\s,]+", root.get("viewBox", "").strip()) if word]
    if len(numbers) != 4 or min(numbers[2:]) <= 0:
        raise ValueError(f"its viewBox is {root.get('viewBox')!r}; four numbers are needed, of which two are sides")
    x, y, width, height = numbers
    side = max(width, height)
    return complex(x - (side - width) / 2, y - (side - height) / 2), side


def _style(text: str) -> dict[str, str]:
    pairs = (declaration.split(":", 1) for declaration in text.split(";") if ":" in declaration)
    return {key.strip(): value.strip() for key, value in pairs}


def _paint(text: str) -> Paint:
    if text.strip() in ("none", "transparent"):
        return (0.0, 0.0, 0.0, 0.0)
    try:
        red, green, blue = ImageColor.getrgb(text.strip())[:3]
    except ValueError as error:
        raise ValueError(f"the paint {text!r} is no colour") from error
    return (red / 255, green / 255, blue / 255, 1.0)


def _transform(text: str) -> Transform:
    found: Transform = Identity
    end = 0
    for match in _TRANSFORMS.finditer(text):
        if match.start() != end:
            break
        end = match.end()
        found = found.transform(
            _one_transform(match[1], [float(word) for word in re.split(r"[\s,]+", match[2].strip())])
        )
    if end != len(text):
        raise ValueError(f"the transform {text!r} is malformed")
    return found


def _one_transform(name: str, numbers: list[float]) -> Any:
    if name == "matrix" and len(numbers) == 6:
        return Transform(*numbers)
    if name == "translate" and len(numbers) in (1, 2):
        return Identity.translate(*numbers)
    if name == "scale" and len(numbers) in (1, 2):
        return Identity.scale(*numbers)
    if name == "rotate" and len(numbers) in (1, 3):
        x, y = numbers[1:] or (0.0, 0.0)
        return Identity.translate(x, y).rotate(radians(numbers[0])).translate(-x, -y)
    raise ValueError(f"the transform {name} with {len(numbers)} numbers is none that is read here")


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
