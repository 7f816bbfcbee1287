"""Files that are there whole or not at all, and the sha256 of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch


class HashingFile:
    """A binary file that takes the sha256 of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Writes bytes, or anything with a buffer."""
        self.sha256.update(data)
        return self._file.write(data)


def write_aside(path: Path, write: Callable[[HashingFile], object]) -> tuple[Path, str]:
    """Writes a file under another name in the same folder, down to the disk, ready to be renamed to `path`.

    Returns:
        The file, and the sha256 of its bytes.
    """
    aside = _aside(path)
    whole = False
    try:
        with aside.open("wb") as file:
            hashing = HashingFile(file)
            write(hashing)
            file.flush()
            os.fsync(file.fileno())
        whole = True
    finally:
        if not whole:  # a full disk, or what is being written turned out to be no good
            aside.unlink(missing_ok=True)
    return aside, hashing.sha256.hexdigest()


def write_whole(path: Path, write: Callable[[HashingFile], object]) -> str:
    """Writes a file so that it is there in full or not at all. Returns the sha256 of its bytes."""
    aside, digest = write_aside(path, write)
    os.replace(aside, path)
    return digest


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> str:
    """Writes a UTF-8 text file, in full or not at all; its folder is made where there is none. Returns the sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> str:
    """Writes an indented JSON file as `write_text`. NaN and infinity are a ValueError: JSON has none."""
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Writes one JSON object a line; NaN and infinity as in `write_json`."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> None:
    """Writes a safetensors file, in full or not at all, which all may read who may read new files of this process."""
    from safetensors.torch import save_file

    aside = _aside(path)
    try:
        aside.touch()
        mode = aside.stat().st_mode
        save_file(dict(tensors), aside, metadata={"format": "pt", **metadata})
        aside.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_png(path: Path, save: Callable[[BytesIO], object]) -> str:
    """Writes what `save` puts into a buffer, as `write_text`."""
    buffer = BytesIO()
    save(buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(path, lambda file: file.write(buffer.getvalue()))


def _aside(path: Path) -> Path:
    """A name beside `path`, drawn by chance: processes of two machines that share a disk may have one number."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
