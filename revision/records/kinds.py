"""What a text, an image, a pair and a conversation are, and the checks that make one of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from revision.pictures import Blob, Picture

Role = Literal["user", "assistant", "system"]
IMAGE_MARK = "<image>"

Row = dict[str, Any]
Located = tuple[str, Row]  # where a row stands ("FILE, line 3"), and the row
Location = Path | str
Fields = Mapping[str, str]  # our name of a field -> the name it has in a file


@dataclass(frozen=True)
class Text:
    """A text to be embedded; may be empty here, also for one that is null, and `embed` rejects it then."""

    id: str
    text: str


@dataclass(frozen=True)
class Image:
    """A picture to be embedded, a file or bytes (none for one that is null); if it can be read shows when it is."""

    id: str
    picture: Picture


@dataclass(frozen=True)
class Pair:
    """A picture file and a text that describes it."""

    id: str
    path: Path
    text: str


@dataclass(frozen=True)
class Message:
    """One turn. `<image>` in a user's turn marks where the picture stands."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages, about a picture or not; `image` is the id of a row of an embedding store."""

    id: str
    image: str | None
    messages: list[Message]


def string_of(where: str, row: Row, field: str) -> str:
    """A field that must be a text. Raises ValueError."""
    if field not in row:
        raise ValueError(f"{where}: the record has no {field!r}; it has {', '.join(map(repr, row)) or 'nothing'}")
    value = row[field]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field!r} must be a text, not {shown(value)}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {field!r} holds half a surrogate pair, which no file can store: {shown(value)}")
    return value


def identity_of(where: str, row: Row) -> str:
    """The id of a row; a whole number is read as its digits. Raises ValueError."""
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        return str(row["id"])
    if "id" not in row:
        raise ValueError(
            f"{where}: the record has no 'id'; it has {', '.join(map(repr, row)) or 'nothing'}: name the field that is "
            'one, or the number of the row by "#", in the fields of these records, such as {id: "#"}'
        )
    identity = string_of(where, row, "id")
    if not identity:
        raise ValueError(f"{where}: 'id' must not be empty")
    return identity


def text_of(where: str, row: Row) -> Text:
    """A text record; null is an empty text. Raises ValueError."""
    empty = "text" in row and row["text"] is None
    return Text(identity_of(where, row), "" if empty else string_of(where, row, "text"))


def image_of(where: str, row: Row, root: Path) -> Image:
    """An image record: a path that starts from `root`, or bytes that the row brings; none where it is null or empty.

    Raises:
        ValueError: a malformed row.
    """
    identity, value = identity_of(where, row), row.get("image")
    if isinstance(value, Blob):
        return Image(identity, value)
    if isinstance(value, bytes):
        return Image(identity, Blob(where, value))
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:  # as `datasets` stores a picture
        if isinstance(value.get("bytes"), bytes):
            return Image(identity, Blob(value.get("path") or where, value["bytes"]))
        row = {"image": value.get("path")}
    if "image" not in row and ("conversations" in row or "messages" in row):
        raise ValueError(
            f"{where}: the record has no 'image' but is a conversation; for the pictures of a file of conversations, "
            "each once, set the source's fields to {id: image}"
        )
    if "image" in row and row["image"] in (None, ""):
        return Image(identity, Blob(f"{where}, image", b""))
    return Image(identity, root / _path(where, row))


def pair_of(where: str, row: Row, root: Path) -> Pair:
    """A picture file with its text. Raises ValueError."""
    text = string_of(where, row, "text")
    image = image_of(where, row, root)
    if row.get("image") in (None, ""):
        _path(where, row)
    if not isinstance(image.picture, Path):
        raise ValueError(f"{where}: 'image' must be the path of a file here, not bytes; write the pictures to files")
    return Pair(image.id, image.picture, text)


def _path(where: str, row: Row) -> str:
    path = string_of(where, row, "image")
    if not path or "\0" in path:
        raise ValueError(f"{where}: 'image' is {path!r}, which is no path of a file")
    return path


def shown(value: Any) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text):,} characters)"
