"""Files of the image side: decoding pictures safely, and turning files into tensors.

Pictures are what our own encoders read. Another kind of encoder brings its own `OpenFile` and `Preprocess`, and its
files go the same way.
"""

from __future__ import annotations

import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

Preprocess = Callable[[Any], torch.Tensor]

# How many times as long as wide a picture may be. Scaled by the shorter side, one of 100,000 x 1 would fill the memory.
MOST_ELONGATED = 200

# Pixels that a picture may have. Telephones give up to 108 million in one shot; bringing so many to RGB takes up to 20
# bytes each, 2 GB in every decoding process. Pillow's own limit is half as many again.
MOST_PIXELS = 120_000_000

# The formats that are decoded, by Pillow's names; TGA has no first bytes of its own and is tried last. All of them are
# rasters that Pillow reads by itself: it would hand an EPS, whatever the file is called, to another program.
FORMATS = (
    "AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "TIFF", "WEBP", "TGA",
)  # fmt: skip

# What Pillow's decoders are known to raise on damaged files; every one of them says "this file", none "this program".
_DECODING_ERRORS = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Blob:
    """The bytes of a file that does not lie on the disk: a member of a tar shard, a cell of a table.

    `name` says where it lies; it stands in messages and sidecars in place of a path.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


Picture = Path | Blob  # all that decoding needs to know of where pictures come from
OpenFile = Callable[[Picture], Any]  # a file -> a picture, or what another kind of encoder reads


def absence(path: Path) -> str | None:
    """Why there is no file at a path, as the rest of a sentence about it; None where there is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: what no name of a file can hold
        return "does not exist"
    except OSError as error:  # a name that is too long, a folder on the way that may not be entered
        return f"cannot be read: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "is a folder; name a file in it"
    return None if stat.S_ISREG(mode) else "is no regular file"


def read_bytes(path: Picture) -> bytes:
    """The content of a file of any kind, for an encoder that decodes it itself.

    Raises:
        ValueError: the file does not exist, is a folder, or may not be read; of a table or an archive, it is empty.
    """
    if isinstance(path, Blob):
        if not path.content:
            raise ValueError(f"{path} is empty")
        return path.content
    if problem := absence(path):
        raise ValueError(f"{path} {problem}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def open_picture(path: Picture) -> Image.Image:
    """Decodes a picture, a file or bytes, into memory.

    EXIF rotation is applied, transparent parts become white, the first frame of an animation is taken, and 16-bit grey
    is brought to 8 bits by its high byte. Floating-point numbers and whole ones outside of 16 bits are refused.

    Returns:
        An RGB image without alpha, fully decoded.

    Raises:
        ValueError: the file does not exist, is a folder, may not be read, is not a picture of `FORMATS`, is damaged, or
            has more than `MOST_PIXELS`.
    """
    if isinstance(path, Path) and (problem := absence(path)):
        raise ValueError(f"picture {path} {problem}")
    if isinstance(path, Blob) and not path.content:
        raise ValueError(f"{path} is not a picture: it is empty")
    too_large = f"picture {path} has more than {MOST_PIXELS:,} pixels, the most that are decoded; scale it down"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's limits are not ours
            opened = Image.open(BytesIO(path.content) if isinstance(path, Blob) else path, formats=FORMATS)
        with opened as file:
            if file.width * file.height > MOST_PIXELS:  # as its header says: nothing is decoded yet
                raise Image.DecompressionBombError
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            return _on_white(file)
    except Image.DecompressionBombError as error:
        raise ValueError(too_large) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture of a format that is read: {', '.join(FORMATS)}") from error
    except _DECODING_ERRORS as error:
        raise ValueError(f"picture {path} is damaged: {error}") from error


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        return _of_whole_numbers(picture)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range the file does not tell")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture if picture.mode == "RGBA" else picture.convert("RGBA")  # which would be a copy
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _of_whole_numbers(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, also in a container of 32, by its high byte; where that holds 8 bits, as they are."""
    values = np.asarray(picture)
    if picture.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
        raise ValueError("its pixels are whole numbers outside of 0 to 65,535, whose range the file does not tell")
    grey = (values if picture.mode == "I" and values.max() <= 0xFF else values >> 8).astype(np.uint8)
    if "transparency" in picture.info:  # of PNG: the one value that stands for nothing
        grey[values == picture.info["transparency"]] = 0xFF
    return Image.fromarray(grey).convert("RGB")


def preprocessed(picture: Any, preprocess: Preprocess) -> torch.Tensor:
    """A picture as an encoder reads it: float32 [3, height, width]; or what another kind of encoder reads.

    Raises:
        ValueError: the picture is so narrow that one side would scale to nothing, or the other to millions of pixels.
    """
    if not isinstance(picture, Image.Image):
        return preprocess(picture)
    width, height = picture.size
    problem = f"a picture of {width} x {height} pixels is too narrow for an encoder; crop it, or leave it out"
    if max(picture.size) > MOST_ELONGATED * min(picture.size):
        raise ValueError(problem)
    try:
        return preprocess(picture)
    except ValueError as error:  # torchvision's, of a side that scales to zero pixels
        raise ValueError(problem) from error


@dataclass(frozen=True)
class Pixels:
    """One batch of files after decoding and preprocessing.

    Attributes:
        tensor: float32 [n, ...] ([n, 3, height, width] for most encoders), the readable files in the order of the
            batch; n may be 0.
        sizes: width x height in pixels of each picture before preprocessing, or the number of values after it where the
            file is no picture; 0 where it could not be read.
        problems: for each file of the batch, why it could not be read, or None.
    """

    tensor: torch.Tensor
    sizes: list[int]
    problems: list[str | None]


def read_pixels(paths: Sequence[Picture], preprocess: Preprocess, open_file: OpenFile = open_picture) -> Pixels:
    """Decodes and preprocesses one batch of files; an unreadable file becomes a reason instead of a row."""
    tensors: list[torch.Tensor] = []
    sizes: list[int] = []
    problems: list[str | None] = []
    for path in paths:
        try:
            opened = open_file(path)
        except ValueError as error:
            sizes.append(0)
            problems.append(str(error))
            continue
        is_picture = isinstance(opened, Image.Image)
        try:
            tensors.append(preprocessed(opened, preprocess))
        except ValueError as error:
            sizes.append(0)
            problems.append(f"picture {path}: {error}" if is_picture else f"{path}: {error}")
        else:
            sizes.append(opened.width * opened.height if is_picture else tensors[-1].numel())
            problems.append(None)
    return Pixels(torch.stack(tensors) if tensors else torch.empty(0), sizes, problems)
