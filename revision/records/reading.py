"""Records read from a location: texts, pictures, pairs, conversations; counted and checked before they are used."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from revision.embeddings import hash_id
from revision.files import file_sha256
from revision.records.conversations import conversation_of, is_conversation
from revision.records.formats import content_fingerprint, local, open_rows
from revision.records.kinds import (
    Conversation,
    Fields,
    Image,
    Located,
    Location,
    Pair,
    Row,
    Text,
    identity_of,
    image_of,
    is_absent,
    is_inside,
    pair_of,
    path_in,
    text_of,
    with_one_picture,
)
from revision.records.spans import ALL, Spans

ROW_NUMBER = "#"  # as a field's name: the number of the row, from 0 on, for files without ids


def read_rows(location: Location, fields: Fields | None = None) -> Iterator[Row]:
    """Yields rows as mappings, unchecked but for being mappings.

    Of the authors' mapping of two lists, the images come first, then the texts.

    Raises:
        ValueError: nothing is there, it is of an unknown format, or malformed.
    """
    return (row for _, row in located(location, "images", "texts", fields=fields))


def read_texts(location: Location, fields: Fields | None = None, *, wanted: Spans = ALL) -> Iterator[Text]:
    """Yields the wanted texts of rows {"id", "text"}, by number. Raises ValueError for a malformed row."""
    rows = located(location, "texts", fields=fields, pictures=False, wanted=wanted)
    return (text_of(*one) for one in rows)


def read_images(
    location: Location, image_root: Path | None = None, fields: Fields | None = None, *, wanted: Spans = ALL
) -> Iterator[Image]:
    """Yields the wanted pictures of rows {"id", "image"}, by number. Raises ValueError for a malformed row.

    Args:
        image_root: folder that relative paths start from; None: the folder of the records file.
        fields: where these take `id` from the field of the picture, each picture is one record, however many rows name
            it, and conversations without a picture are none. Pictures inside of the rows go by the rows' ids.
    """
    root = _root(location, image_root)
    if _named_by_path(fields):  # records are numbered otherwise than rows
        named = enumerate(_each_once(located(location, "images", fields=_but_id(fields))))
        return (image_of(*one, root) for number, one in named if number in wanted)
    return (image_of(*one, root) for one in located(location, "images", fields=fields, wanted=wanted))


def read_pairs(location: Location, image_root: Path | None = None, fields: Fields | None = None) -> Iterator[Pair]:
    """Yields the pairs of rows {"id", "image", "text"}; paths as in `read_images`."""
    root = _root(location, image_root)
    return (pair_of(*one, root) for one in located(location, fields=fields))


def read_conversations(location: Location, fields: Fields | None = None) -> Iterator[Conversation]:
    """Yields conversations, from rows as `revision.records.conversations.conversation_of` takes them.

    Raises:
        ValueError: a malformed row; turns without an answer; `<image>` marks that do not fit the `image` field.
    """
    return (conversation_of(*one) for one in located(location, fields=fields))


def count_records(location: Location, kind: Literal["text", "image"], fields: Fields | None = None) -> int:
    """Reads a whole source once and checks what can be checked before anything is embedded.

    Every row is well formed and no id occurs twice. A text or picture that is null or empty is counted: `embed` rejects
    it. Takes 8 bytes of memory a row.

    Returns:
        The number of records.

    Raises:
        ValueError: a malformed row; a duplicate id, with both its places; a source without records.
    """

    def rows() -> Iterator[Located]:
        """Rows as they stand, with their places."""
        if kind == "image" and _named_by_path(fields):  # which rows have a picture shows when pictures are read
            return _each_once(located(location, "images", fields=_but_id(fields)))
        return located(location, "texts" if kind == "text" else "images", fields=fields, pictures=False)

    check: Callable[[str, Row], Text | Image] = text_of if kind == "text" else _image_anywhere
    hashes = array("Q", (hash_id(check(*one).id) for one in rows()))
    if not hashes:
        raise ValueError(f"{location} holds no {kind} records; embedding needs at least one")
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    first: dict[str, str] = {}
    for where, row in rows() if suspects else ():
        identity = identity_of(where, row)
        if hash_id(identity) in suspects:
            if identity in first:
                raise ValueError(
                    f"id {identity!r} occurs twice: {first[identity]}, and {where}; ids must be unique: name another "
                    'field in fields, such as {id: "#"}, the number of the row, or in tar shards {id: __key__}, the '
                    "sample's name with its folder"
                )
            first[identity] = where
    return len(hashes)


def fingerprint(location: Location, fields: Fields | None = None, *, whole: bool = False) -> str:
    """What records are a function of, as hexadecimal digits: the sha256 of a file's bytes.

    Of several files, of one above 1 GiB that holds pictures, and of a data set, it is that of their names, sizes and
    of blocks of their contents; of a folder of pictures, that of their paths. Where `fields` rename something, they are
    part of it.

    Args:
        location, fields: of the records.
        whole: of all bytes of such files too, so that no change goes unnoticed; takes as long as to read them.

    Raises:
        ValueError: nothing is there.
    """
    found = content_fingerprint(location, file_sha256) if whole else content_fingerprint(location)
    if not fields:
        return found
    return hashlib.sha256(f"{found} {sorted(fields.items())}".encode()).hexdigest()


def located(
    location: Location, *parts: str, fields: Fields | None = None, pictures: bool = True, wanted: Spans = ALL
) -> Iterator[Located]:
    """Yields (where, row) under our names of fields.

    Args:
        parts: the lists that count in the authors' mapping of lists.
        fields: names that fields have in the file; a dot leads into a mapping; "#" is the number of the row.
        pictures: False spares reading the bytes of pictures that lie inside the files.
        wanted: numbers of the rows, from 0 on.
    """
    rows = open_rows(location, parts, fields=fields, pictures=pictures, wanted=wanted)
    for number, (where, row) in zip(wanted, rows, strict=False):  # where there are fewer rows, these are all
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a record must be a mapping, not {type(row).__name__}")
        yield where, _renamed(row, fields, number) if fields else row


def _renamed(row: Row, fields: Fields, number: int) -> Row:
    """The row with our names beside its own. A name that is not there stays out, and is missed where it is needed."""
    renamed = {name: value for name, value in row.items() if name not in fields}
    for ours, theirs in fields.items():
        if theirs == ROW_NUMBER:
            renamed[ours] = number
            continue
        with suppress(KeyError):
            renamed[ours] = _value(row, theirs)
    return renamed


def _value(row: Row, name: str) -> object:
    """The value under a name in a file, null where a mapping on the way to it is. Raises KeyError if there is none."""
    value: object = row
    for part in [name] if name in row else name.split("."):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise KeyError(name)
        value = value[part]
    return value


def _named_by_path(fields: Fields | None) -> bool:
    """Whether the id of a picture is its path, as where it comes from files of conversations (`id: image`)."""
    return fields is not None and "id" in fields and fields["id"] == fields.get("image", "image")


def _but_id(fields: Fields | None) -> Fields:
    return {ours: theirs for ours, theirs in (fields or {}).items() if ours != "id"}


def _each_once(rows: Iterable[Located]) -> Iterator[Located]:
    """The rows of pictures that go by their paths, each once: LLaVA's conversations share pictures, or have none.

    A picture inside of a row has no path, and keeps the id of the row.
    """
    seen = set[bytes]()
    for where, row in rows:
        row = with_one_picture(where, row)
        value = path_in(row.get("image"))
        if is_conversation(row) and is_absent(value):
            continue
        if is_inside(value):
            yield where, row
            continue
        row = {**row, "id": value, "image": value} if "image" in row else row
        digest = hashlib.blake2b(identity_of(where, row).encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield where, row


def _root(location: Location, image_root: Path | None) -> Path:
    if image_root is not None:
        return Path(os.path.expanduser(image_root))
    path = local(location)
    return path if path.is_dir() else path.parent


def _image_anywhere(where: str, row: Row) -> Image:
    return image_of(where, row, Path())
