"""Tar shards as img2dataset and webdataset write them: files of one sample share their name up to the first dot."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from revision.pictures import Blob
from revision.records.kinds import Fields
from revision.records.picture_files import ENDINGS
from revision.records.spans import ALL, Spans

_TEXTS = {"txt", "text", "caption", "cap"}
_KEY = "__key__"  # as webdataset calls the name of a sample, with its folder


def rows(
    path: Path, *, fields: Fields | None = None, pictures: bool, others: bool = False, wanted: Spans = ALL
) -> Iterator[tuple[str, Any] | None]:
    """Yields (where, row) of each sample of a shard, None for those that are not wanted.

    A row holds the fields of the sample's `.json`, and besides: `id`, its name, where the `.json` has no `id`; `image`,
    its picture as a blob; `text`, its `.txt`, where the `.json` has no `text`. Further files are passed over, and so
    are hidden ones. A sample begins at its first file of whatever ending, so that none is lost without a word. A link
    stands for the file of the shard that it leads to.

    Args:
        fields: may name a file of each sample by all that follows the first dot of its name, as `image: seg.png` does,
            and that is in the row under this ending then, a picture's as a blob, others as texts. What another name
            takes the place of is passed over. `__key__` is the sample's name with its folder.
        pictures: False: the bytes of pictures are left out.
        others: where a sample has no picture and names none, its first file of an unknown ending takes that place.
            Whoever opens it can say of it by name what it is.
        wanted: samples by number; of the others, the headers alone are read.

    Raises:
        ValueError: the shard is damaged, a `.json` or `.txt` in it is malformed, a sample has two pictures, or a link
            leads to no file of the shard.
    """
    number, links, fields = 0, _Links(path), fields or {}
    sample = _Sample(path, links, fields, read=number in wanted)
    try:
        with _open(path) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]  # else every header stays in memory
                name = _shown(member.name)
                if member.isdir() or PurePosixPath(name).name.startswith("."):
                    continue
                key, extension = _split(name)
                if sample.files and key != sample.key:
                    number += 1
                    yield sample.row(archive, pictures=pictures, others=others)
                    sample = _Sample(path, links, fields, read=number in wanted)
                sample.key = key
                sample.add(archive, member, name, extension, pictures)
            _require_end(archive, path)
            if sample.files:
                yield sample.row(archive, pictures=pictures, others=others)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole, uncompressed tar shard (after sample {number}): {error}; fetch or unpack it anew"
        ) from error


def _open(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape")


def _shown(name: str) -> str:
    """A member's name. It is UTF-8 wherever the shard is read; what is not, becomes escapes that a sidecar can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


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


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "a regular file has content"
    data = file.read()
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} ends after {len(data)} of {member.size} bytes")
    return data


class _Links:
    """The files that hard and symbolic links of a shard lead to.

    The headers of a shard are held only once it turns out to have links: `tarfile` would look for the end of a link
    among the members that it holds, and here it holds none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members: dict[str, tarfile.TarInfo] | None = None

    def followed(self, member: tarfile.TarInfo) -> tarfile.TarInfo:
        """The file itself, or the one that a link leads to, over further links too.

        Raises:
            ValueError: it leads to no file of the shard.
        """
        file, passed = member, set[str]()
        while file.issym() or file.islnk():
            folder = posixpath.dirname(file.name) if file.issym() else ""  # a hard link is named from the top
            target = posixpath.normpath(posixpath.join(folder, file.linkname))
            if target in passed or target not in self._named():
                raise ValueError(
                    f"{self._path}, {_shown(member.name)}: it links to {_shown(member.linkname)}, where the shard has "
                    "no file; pack the file itself in its place"
                )
            passed.add(target)
            file = self._named()[target]
        if not file.isfile():
            raise ValueError(f"{self._path}, {_shown(member.name)}: it is no file and links to none; leave it out")
        return file

    def _named(self) -> dict[str, tarfile.TarInfo]:
        if self._members is None:
            with _open(self._path) as archive:
                self._members = {posixpath.normpath(member.name): member for member in archive}
        return self._members


class _Sample:
    """The files of one sample that have been met so far.

    Args:
        path: of the shard.
        links: of the shard.
        fields: as `rows` takes them.
        read: False: its files are counted, not read.
    """

    def __init__(self, path: Path, links: _Links, fields: Fields, *, read: bool) -> None:
        self.key, self.files = "", 0
        self._path, self._links, self._read, self._fields = path, links, read, fields
        self._ours = {theirs: ours for ours, theirs in fields.items()}
        self._held: dict[str, Any] = {}  # of "image", "json", "text" and endings that the fields name, what is there
        self._first: dict[str, str] = {}  # the ending of each
        self._other: tuple[str, tarfile.TarInfo] | None = None  # the first file of an unknown ending, unread

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, extension: str, pictures: bool) -> None:
        """Takes a file in. Raises ValueError for one that is malformed or of a kind that is there already."""
        self.files += 1
        if not self._read:
            return
        member = self._links.followed(member)
        where = f"{self._path}, {name}"
        field = self._field(extension)
        if field is None:
            self._other = self._other or (where, member)
            return
        if field in self._fields and field not in self._ours:
            return
        if self._first.get(field) == extension:
            raise ValueError(f"{where}: the sample has this file twice; leave one out")
        if field in self._held:
            raise ValueError(
                f"{where}: the sample has a second {'picture' if field == 'image' else field}; a sample is one picture "
                f"and its text: say by its ending which is meant, such as fields {{{field}: {self._first[field]}}}"
            )
        self._first[field] = extension
        is_picture = field == "image" or self._ours.get(field) == "image"
        data = b"" if is_picture and not pictures else _read(archive, member)
        try:
            self._held[field] = (
                Blob(where, data) if is_picture else json.loads(data) if field == "json" else data.decode("utf-8-sig")
            )
        except ValueError as error:
            raise ValueError(f"{where} is not valid {'JSON' if field == 'json' else 'UTF-8'}: {error}") from error

    def _field(self, extension: str) -> str | None:
        """What a file of this ending is in the row; None for one of an unknown ending."""
        if extension == "json" or extension in self._ours:
            return extension
        if extension.rpartition(".")[2] in ENDINGS:
            return "image"
        return "text" if extension in _TEXTS else None

    def row(self, archive: tarfile.TarFile, *, pictures: bool, others: bool) -> tuple[str, Any] | None:
        """Where the sample stands, and its row; of a sample of unknown files alone, the first of them is named."""
        if not self._read:
            return None
        where = f"{self._path}, sample {self.key}" if self._held or self._other is None else self._other[0]
        held = self._held
        described = held.get("json", {})
        if not isinstance(described, dict):
            raise ValueError(f"{where}: its .json must hold a mapping, not {type(described).__name__}")
        named = {ending: content for ending, content in held.items() if ending not in ("image", "json", "text")}
        row = {"id": PurePosixPath(self.key).name, **named, **described}
        if _KEY in self._ours:
            row[_KEY] = self.key
        if "text" in held and row.get("text") is None:
            row["text"] = held["text"]
        if "image" in held:
            row["image"] = held["image"]
        elif others and self._other is not None and row.get("image") is None:
            name, member = self._other
            row["image"] = Blob(name, _read(archive, member) if pictures else b"")
        return where, row
