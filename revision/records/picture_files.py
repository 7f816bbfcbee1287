"""A plain folder of pictures as records, and the endings by which files are taken for pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDINGS = frozenset(
    {"jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2"}
)  # fmt: skip
# Of pictures that are not decoded here: in a folder they are taken too, so that each becomes a reject with its reason.
_FOREIGN = frozenset({"heic", "heif", "jxl", "svg", "eps"})


def folder_rows(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) of each picture in a folder and below: `id` and `image` are its path from the folder on.

    Folders are walked by the names in them, so that the order is the same on every machine and one folder's names are
    all that is held in memory. Hidden files and folders, whose name begins with a dot, and other endings are left out.

    Raises:
        ValueError: a folder may not be read, or links to one that it lies in; a name is not UTF-8.
    """
    for file in _files(folder, ()):
        name = file.relative_to(folder).as_posix()
        if not _is_utf8(name):
            raise ValueError(f"{folder} holds {name!r}, a name that is not UTF-8 and no id can be; rename the file")
        yield str(file), {"id": name, "image": name}


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder or below. Raises ValueError as `folder_rows` does."""
    return next(_files(folder, ()), None) is not None


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The pictures of a folder and below; `above` are the folders that it lies in, with links resolved."""
    try:
        here = folder.resolve(strict=True)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        inside = [(Path(entry.path), entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(
            f"folder {folder} cannot be read: {error.strerror}; mend that, or move it elsewhere"
        ) from error
    if here in above:
        raise ValueError(f"{folder} links to a folder that it lies in, so its pictures have no end; remove the link")
    for path, is_folder in inside:
        if is_folder:
            yield from _files(path, (*above, here))
        elif path.suffix[1:].lower() in ENDINGS | _FOREIGN:
            yield path


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
