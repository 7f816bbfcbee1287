"""Tar shards as img2dataset and webdataset write them: files of one sample share their name up to the first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from revision.pictures import Blob

_PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"}
_TEXTS = {"txt", "text", "caption", "cap"}


def rows(path: Path, *, pictures: bool) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) of each sample of a shard.

    A row holds the fields of the sample's `.json`, and besides: `id`, its name, where the `.json` has no `id`; `image`,
    its picture as a blob; `text`, its `.txt`, where the `.json` has no `text`. Other files are passed over.

    Raises:
        ValueError: the shard is damaged, a `.json` or `.txt` in it is malformed, or a sample has two pictures.
    """
    sample: dict[str, Any] = {}
    key, number = "", 0
    try:
        archive: Any
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members.clear()  # else every header stays in memory
                if not member.isfile():
                    continue
                own, extension = _split(member.name)
                if sample and own != key:
                    number += 1
                    yield _row(path, key, sample)
                    sample = {}
                key = own
                where = f"{path}, {member.name}"
                _add(sample, extension, where, _content(archive, member, where, extension, pictures))
            _require_end(archive, path)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole, uncompressed tar shard (after sample {number}): {error}; fetch or unpack it anew"
        ) from error
    if sample:
        yield _row(path, key, sample)


def _require_end(archive: tarfile.TarFile, path: Path) -> None:
    """Holds that the shard ends with the mark of an end: `tarfile` takes a shard that is cut off for a shorter one."""
    with path.open("rb") as file:
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it has no mark of its end, so it was cut off")


def _split(name: str) -> tuple[str, str]:
    """A member's sample and extension: `00000/000012.json` is `00000/000012` and `json`."""
    file = PurePosixPath(name)
    stem, _, extension = file.name.partition(".")
    return str(file.with_name(stem)) if stem else name, extension.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str, extension: str, pictures: bool) -> Any:
    is_picture = extension.rpartition(".")[2] in _PICTURES
    if not is_picture and extension != "json" and extension not in _TEXTS:
        return None
    if is_picture and not pictures:
        return Blob(where, b"")
    file = archive.extractfile(member)
    assert file is not None, "a regular file has content"
    data = file.read()
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} ends after {len(data)} of {member.size} bytes")
    if is_picture:
        return Blob(where, data)
    try:
        return json.loads(data) if extension == "json" else data.decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{where} is not valid {'JSON' if extension == 'json' else 'UTF-8'}: {error}") from error


def _add(sample: dict[str, Any], extension: str, where: str, content: Any) -> None:
    if content is None:
        return
    field = "picture" if isinstance(content, Blob) else "json" if extension == "json" else "text"
    if field in sample:
        raise ValueError(f"{where}: the sample has a second {field}; a sample is one picture and its text")
    sample[field] = content


def _row(path: Path, key: str, sample: dict[str, Any]) -> tuple[str, Any]:
    where = f"{path}, sample {key}"
    described = sample.get("json", {})
    if not isinstance(described, dict):
        raise ValueError(f"{where}: its .json must hold a mapping, not {type(described).__name__}")
    row = {"id": PurePosixPath(key).name, **described}
    if "text" in sample:
        row.setdefault("text", sample["text"])
    if "picture" in sample:
        row["image"] = sample["picture"]
    return where, row
