"""A plain folder of pictures as records, and the endings by which files are taken for pictures or records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDINGS = frozenset(
    {"jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2"}
)  # fmt: skip
# Of records files, in the order in which they are looked for in a folder.
ENDINGS_OF_RECORDS = ("tar", "parquet", "jsonl", "jsonl.gz", "ndjson", "ndjson.gz")
_HIDDEN_BY_PICTURES = tuple(f".{ending}" for ending in (*ENDINGS_OF_RECORDS, "arrow"))
# Of pictures that are not decoded here: in a folder they are taken too, so that each becomes a reject with its reason.
_FOREIGN = frozenset({"heic", "heif", "jxl", "svg", "eps"})


def folder_rows(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) of each picture in a folder and below: `id` and `image` are its path from the folder on.

    Folders are walked by the names in them, so that the order is the same on every machine and one folder's names are
    all that is held in memory. Hidden files and folders, whose name begins with a dot, and other endings are left out.

    Raises:
        ValueError: a folder may not be read, or links to one that it lies in; a name is not UTF-8; there are records
            files below, which would go unread.
    """
    for file in _files(folder, ()):
        name = file.relative_to(folder).as_posix()
        if name.lower().endswith(_HIDDEN_BY_PICTURES):
            raise ValueError(
                f"{folder} holds pictures, and {name}, whose records would go unread; name the folder of one of both "
                f"alone, such as {file.parent}, or move the other away"
            )
        if not _is_picture(file):
            continue
        if not _is_utf8(name):
            raise ValueError(f"{folder} holds {name!r}, a name that is not UTF-8 and no id can be; rename the file")
        yield str(file), {"id": name, "image": name}


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder or below. Raises ValueError as `folder_rows` does."""
    return any(map(_is_picture, _files(folder, ())))


def _is_picture(file: Path) -> bool:
    return file.suffix[1:].lower() in ENDINGS | _FOREIGN


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files of a folder and below but hidden ones; `above` are the folders that it lies in, with links resolved."""
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
        else:
            yield path


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
