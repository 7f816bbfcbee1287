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


def is_inside(value: Any) -> bool:
    """Whether a picture is in the row itself, as bytes, and not named by it; what is empty or null is neither."""
    if isinstance(value, Blob):
        return bool(value.content)
    return isinstance(value.get("bytes") if isinstance(value, dict) else value, bytes)


def is_absent(value: Any) -> bool:
    """Whether a row has no picture there: it is null, an empty name, or without bytes."""
    return value in (None, "") or (isinstance(value, Blob) and not value.content)


def path_in(value: Any) -> Any:
    """The path of a picture that `datasets` describes by path and bytes but without bytes; other values as they are."""
    if isinstance(value, dict) and "path" in value and value.keys() <= {"bytes", "path"} and not is_inside(value):
        return value["path"]
    return value


def with_one_picture(where: str, row: Row) -> Row:
    """The row with its picture as `image`, where it is the only one of a list: `image`, or else `images`.

    Raises:
        ValueError: a list of several.
    """
    listed = row.get("images") if is_absent(row.get("image")) else row["image"]
    if not isinstance(listed, list):
        return row
    if len(listed) > 1:
        raise ValueError(
            f"{where}: it lists {len(listed)} pictures; a record of an image source has one: give each a row of its own"
        )
    return {**row, "image": listed[0] if listed else None}


def image_of(where: str, row: Row, root: Path) -> Image:
    """An image record: a path that starts from `root`, or bytes that the row brings; none where it is null or empty.

    A list of one picture is that picture, as `image` or as `images`.

    Raises:
        ValueError: a malformed row.
    """
    row = with_one_picture(where, row)
    identity, value = identity_of(where, row), row.get("image")
    if isinstance(value, Blob):
        return Image(identity, value)
    if is_inside(value):
        cell: Row = value if isinstance(value, dict) else {"bytes": value}
        return Image(identity, Blob(cell.get("path") or where, cell["bytes"]))
    if "image" not in row and ("conversations" in row or "messages" in row):
        raise ValueError(
            f"{where}: the record has no 'image' but is a conversation; for the pictures of a file of conversations, "
            "each once, set the source's fields to {id: image}"
        )
    if "image" in row:
        row = {**row, "image": path_in(value)}
        if is_absent(row["image"]):
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
