"""What lies at a location, found out by its content, and the rows that it holds."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from revision.embeddings.foreign.parts import file_sample
from revision.records import huggingface, json_text, picture_files, tables, tar_shards
from revision.records.kinds import Fields, Location
from revision.records.spans import Spans

LocatedAny = tuple[str, Any]
# A reader of one file, which numbers its rows from 0 on, gives an item a row: None may stand for one that nobody wants.
Reader = Callable[[Path, tuple[str, ...], Fields, bool, Spans], Iterator[LocatedAny | None]]
_KNOWN = (
    "JSON lines, JSON, parquet, tar shards (webdataset), a folder of pictures, a data set of `datasets`, or "
    "hf://owner/name?split=..."
)
_HEAD = 4096  # bytes that tell a format
_CONTAINERS = ("parquet", "tar")  # files that may hold terabytes of pictures
_LARGE = 1 << 30


def open_rows(
    location: Location, parts: tuple[str, ...], *, fields: Fields | None = None, pictures: bool, wanted: Spans
) -> Iterator[LocatedAny]:
    """Yields (where, row) of the wanted rows at a location, in constant memory.

    Args:
        parts: the lists that count in the authors' mapping of lists.
        fields: those of a tar shard may name files of a sample by their ending. The rows have the file's own names.
        pictures: False: bytes of pictures are left out where that spares reading them.
        wanted: row numbers, from 0 on over all files. Bytes of pictures in other rows are not read, as far as the
            format allows.

    Raises:
        ValueError: nothing is there, it is of an unknown format, or malformed.
    """
    if huggingface.is_hub(location):
        yield from huggingface.hub_rows(str(location), pictures=pictures, wanted=wanted)
        return
    path = local(location)
    if huggingface.is_saved(path):
        yield from huggingface.saved_rows(path, pictures=pictures, wanted=wanted)
        return
    if _is_of_pictures(path):
        yield from _chosen(picture_files.folder_rows(path), wanted)
        return
    number = 0
    for file in _files(path):
        for row in _READERS[_format(file)](file, parts, fields or {}, pictures, wanted.after(number)):
            if number >= wanted.end:
                return
            if row is not None and number in wanted:
                yield row
            number += 1


def _chosen(rows: Iterator[LocatedAny], wanted: Spans) -> Iterator[LocatedAny]:
    """The wanted ones of rows that cost nothing to read."""
    for number, row in enumerate(rows):
        if number >= wanted.end:
            return
        if number in wanted:
            yield row


def content_fingerprint(location: Location, sample: Callable[[Path], str] = file_sample) -> str:
    """The sha256 of what lies at a location; see `revision.records.fingerprint`.

    sample: what stands for a file where there are several.
    """
    if huggingface.is_hub(location):
        return huggingface.hub_fingerprint(str(location), sample)
    path = local(location)
    if path.is_file() and not (path.stat().st_size > _LARGE and _format(path) in _CONTAINERS):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not huggingface.is_saved(path) and _is_of_pictures(path):
        digest = hashlib.sha256()
        for _, row in picture_files.folder_rows(path):
            digest.update(f"{row['id']}\n".encode())
        return digest.hexdigest()
    files = sorted(path.rglob("*.arrow")) if huggingface.is_saved(path) else _files(path)
    return hashlib.sha256("".join(f"{file.name} {sample(file)}\n" for file in files).encode()).hexdigest()


def local(location: Location) -> Path:
    """A location as a path, `~` for one's home.

    Raises ValueError where the system refuses it: too long a name, a folder not to be entered.

    That nothing is there is no matter here: it may be a pattern, and else is named where the records are read.
    """
    path = Path(os.path.expanduser(location))  # Path's own raises where it knows of no such home
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ValueError(f"records {location} cannot be read: {error.strerror}; correct the path") from error
    return path


def _is_of_pictures(path: Path) -> bool:
    """Whether a location is a folder with no records files in it, but pictures in it or below."""
    return path.is_dir() and not _of_folder(path) and picture_files.holds_pictures(path)


def _of_folder(path: Path) -> list[Path]:
    """The records files of a folder, sorted by name: those of one kind, else its `.json` files.

    A `.json` beside others describes them, and so does a `.parquet` the tar shard of its name (img2dataset).

    Raises:
        ValueError: they are of several kinds, of which one would go unread.
    """
    found = {ending: sorted(path.glob(f"*.{ending}")) for ending in picture_files.ENDINGS_OF_RECORDS}
    shards = {file.stem for file in found["tar"]}
    found["parquet"] = [file for file in found["parquet"] if file.stem not in shards]
    kinds = [ending for ending, files in found.items() if files]
    if len(kinds) > 1:
        first, second = kinds[:2]
        raise ValueError(
            f"{path} holds .{first} beside .{second} files ({found[first][0].name}, {found[second][0].name}); name one "
            f"kind by a pattern, such as {path}/*.{first}, or move the others away"
        )
    return found[kinds[0]] if kinds else sorted(path.glob("*.json"))


def _files(path: Path) -> list[Path]:
    """The files of a location, sorted by name: the file itself, those of a folder, or those that a pattern matches.

    Raises:
        ValueError: there is none.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        if found := _of_folder(path):
            return found
        raise ValueError(
            f"{path} is a folder without .tar, .parquet, .jsonl or .json files, and without pictures; known are "
            f"{_KNOWN}"
        )
    found = _matching(path)
    if not found:
        raise ValueError(f"records file {path} does not exist; make it (see data.recipe) or correct the path")
    return found


def _matching(path: Path) -> list[Path]:
    """The files that a pattern matches, sorted. Folders that it begins with, and that are there, are no pattern."""
    start = next(folder for folder in path.parents if folder.is_dir() or folder == folder.parent)
    names = glob.glob(str(path.relative_to(start)), root_dir=start)
    return sorted(start / name for name in names if (start / name).is_file())


def _format(path: Path) -> str:
    """The key of the reader for a file, by its first bytes; the name decides only what they leave open.

    Raises:
        ValueError: it fits none.
    """
    with open_bytes(path) as file:
        try:
            head = file.read(_HEAD)
        except json_text.DAMAGED as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if head.startswith(b"PAR1") or (path.suffix == ".parquet" and not head.lstrip().startswith((b"{", b"["))):
        return "parquet"
    if head[257:262] == b"ustar" or path.suffix == ".tar":
        return "tar"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[1::2].count(0) > len(head) // 4:
        raise ValueError(f"{path} is UTF-16 text; save it as UTF-8")
    match head.removeprefix(json_text.BOM).lstrip()[:1]:
        case b"[":
            return "json lines" if _lines_by_name(path) else "json list"
        case b"{":
            return "json lines" if _lines_by_name(path) or _first_line_is_a_record(path) else "json mapping"
        case b"":
            return "json lines" if _lines_by_name(path) else "json list"
    if _lines_by_name(path):
        return "json lines"
    if path.suffix == ".json":
        return "json list"
    raise ValueError(
        f"records file {path} begins with {head[:20]!r}, which is no format of records; known are {_KNOWN}"
    )


def open_bytes(path: Path) -> IO[bytes]:
    """A file for reading, unpacked where it is gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _lines_by_name(path: Path) -> bool:
    return bool({".jsonl", ".ndjson"} & set(path.suffixes))


def _first_line_is_a_record(path: Path) -> bool:
    """Whether a file that begins with a brace holds JSON lines, not one mapping."""
    with open_bytes(path) as file:
        try:
            row = json_text.first_line(file)
        except json_text.DAMAGED as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if not isinstance(row, dict):
        return False
    return not row.keys() & {"images", "texts"} or bool(row.keys() & {"id", "messages", "conversations"})


def _json_lines(
    path: Path, parts: tuple[str, ...], fields: Fields, pictures: bool, wanted: Spans
) -> Iterator[LocatedAny]:
    with open_bytes(path) as file:
        yield from json_text.lines(file, path)


def _json_list(
    path: Path, parts: tuple[str, ...], fields: Fields, pictures: bool, wanted: Spans
) -> Iterator[LocatedAny]:
    with open_bytes(path) as file:
        yield from json_text.items(file, path)


def _json_mapping(
    path: Path, parts: tuple[str, ...], fields: Fields, pictures: bool, wanted: Spans
) -> Iterator[LocatedAny]:
    yield from json_text.parts_of_mapping(lambda: open_bytes(path), path, parts)


def _parquet(
    path: Path, parts: tuple[str, ...], fields: Fields, pictures: bool, wanted: Spans
) -> Iterator[LocatedAny | None]:
    yield from tables.rows(path, pictures=pictures, wanted=wanted)


def _tar(
    path: Path, parts: tuple[str, ...], fields: Fields, pictures: bool, wanted: Spans
) -> Iterator[LocatedAny | None]:
    yield from tar_shards.rows(path, fields=fields, pictures=pictures, others="images" in parts, wanted=wanted)


_READERS: dict[str, Reader] = {
    "json lines": _json_lines,
    "json list": _json_list,
    "json mapping": _json_mapping,
    "parquet": _parquet,
    "tar": _tar,
}
