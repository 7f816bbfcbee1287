"""Records: what a text, an image, a pair and a conversation are, and the readers of every file format they come in.

Formats: JSON lines (`.jsonl`), JSON (`.json`: a list, or the mapping {"images": [...], "texts": [...]} that ReVision's
authors use) and parquet (`.parquet`). Fields are described in `docs/formats.md`. Readers stream where the format allows
it, and every error names the file and the line, item or row.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revision.embeddings import hash_id

Role = Literal["user", "assistant", "system"]
IMAGE_MARK = "<image>"
_LLAVA_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Text:
    """A text to be embedded; may be empty here, `embed` rejects it then."""

    id: str
    text: str


@dataclass(frozen=True)
class Image:
    """A picture file to be embedded; whether it can be read shows when it is."""

    id: str
    path: Path


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


Row = dict[str, Any]
Located = tuple[str, Row]  # where a row stands ("FILE, line 3"), and the row


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a records file as mappings, unchecked but for being mappings.

    Of the authors' mapping of two lists, the images come first, then the texts.

    Raises:
        ValueError: the file is missing, of an unknown format, or malformed.
    """
    return (row for _, row in _located(path, "images", "texts"))


def read_texts(path: Path) -> Iterator[Text]:
    """Yields the texts of a file of rows {"id", "text"}. Raises ValueError for a malformed row."""
    return (_text(*located) for located in _located(path, "texts"))


def read_images(path: Path, image_root: Path | None = None) -> Iterator[Image]:
    """Yields the pictures of a file of rows {"id", "image"}. Raises ValueError for a malformed row.

    Args:
        image_root: folder that relative paths start from; None: the folder of the records file.
    """
    root = path.parent if image_root is None else image_root
    return (_image(*located, root) for located in _located(path, "images"))


def read_pairs(path: Path, image_root: Path | None = None) -> Iterator[Pair]:
    """Yields the pairs of a file of rows {"id", "image", "text"}; paths as in `read_images`."""
    root = path.parent if image_root is None else image_root
    for where, row in _located(path):
        text = _text(where, row)
        yield Pair(text.id, _image(where, row, root).path, text.text)


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Yields conversations, from rows with "messages" (role, content) or LLaVA's "conversations" (from, value).

    Raises:
        ValueError: a malformed row; turns without an answer; `<image>` marks that do not fit the `image` field.
    """
    return (_conversation(*located) for located in _located(path))


def count_records(path: Path, kind: Literal["text", "image"]) -> int:
    """Reads a whole file once and checks what can be checked before anything is embedded.

    Every row is well formed and no id occurs twice. Takes 8 bytes of memory a row.

    Returns:
        The number of records.

    Raises:
        ValueError: a malformed row; a duplicate id, with both its places; a file without records.
    """
    part = "texts" if kind == "text" else "images"
    check: Callable[[str, Row], Text | Image] = _text if kind == "text" else _image_anywhere
    hashes = array("Q", (hash_id(check(*located).id) for located in _located(path, part)))
    if not hashes:
        raise ValueError(f"{path} holds no {kind} records; embedding needs at least one")
    values, counts = np.unique(np.frombuffer(hashes, dtype=np.uint64), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    first: dict[str, str] = {}
    for where, row in _located(path, part) if suspects else ():
        identity = _identity(where, row)
        if hash_id(identity) in suspects:
            if identity in first:
                raise ValueError(f"id {identity!r} occurs twice: {first[identity]}, and {where}; ids must be unique")
            first[identity] = where
    return len(hashes)


def fingerprint(path: Path) -> str:
    """The sha256 of a file's bytes, as hexadecimal digits. Raises ValueError for a missing file."""
    _require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"records file {path} does not exist; make it (see data.recipe) or correct the path")


def _located(path: Path, *parts: str) -> Iterator[Located]:
    """Yields (where, row); `parts` are the lists that count in the authors' mapping of lists."""
    _require_file(path)
    match path.suffix:
        case ".jsonl":
            rows = _jsonl(path)
        case ".json":
            rows = _json(path, parts)
        case ".parquet":
            rows = _parquet(path)
        case suffix:
            raise ValueError(f"records file {path} ends in {suffix!r}; known are .jsonl, .json and .parquet")
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a record must be a mapping, not {type(row).__name__}")
        yield where, row


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
                raise ValueError(f"{where} is not valid JSON: {error}") from error
            yield where, row


def _json(path: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if isinstance(content, list):
        yield from ((f"{path}, item {number}", row) for number, row in enumerate(content, start=1))
        return
    if not isinstance(content, dict) or not all(isinstance(content.get(part, []), list) for part in parts):
        raise ValueError(f'{path} must hold a list of records or {{"images": [...], "texts": [...]}}')
    if not any(part in content for part in parts):
        raise ValueError(
            f"{path} is a mapping without {' or '.join(map(repr, parts)) or 'a list of records'}; "
            f"it has {', '.join(map(repr, content)) or 'nothing'}"
        )
    for part in parts:
        for number, row in enumerate(content.get(part, []), start=1):
            yield f"{path}, {part} item {number}", row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file (after row {number}): {error}") from error


def _string(where: str, row: Row, field: str) -> str:
    if field not in row:
        raise ValueError(f"{where}: the record has no {field!r}; it has {', '.join(map(repr, row)) or 'nothing'}")
    value = row[field]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field!r} must be a text, not {value!r}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{where}: {field!r} holds half a surrogate pair, which no file can store: {value!r}")
    return value


def _identity(where: str, row: Row) -> str:
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        return str(row["id"])
    identity = _string(where, row, "id")
    if not identity:
        raise ValueError(f"{where}: 'id' must not be empty")
    return identity


def _text(where: str, row: Row) -> Text:
    return Text(_identity(where, row), _string(where, row, "text"))


def _image(where: str, row: Row, root: Path) -> Image:
    return Image(_identity(where, row), root / _string(where, row, "image"))


def _image_anywhere(where: str, row: Row) -> Image:
    return _image(where, row, Path())


def _conversation(where: str, row: Row) -> Conversation:
    ours = "messages" in row
    turns = row.get("messages" if ours else "conversations")
    if not isinstance(turns, list):
        raise ValueError(f"{where}: it needs a list 'messages' (role, content) or 'conversations' (from, value)")
    names, roles = (("role", "content"), _ROLES) if ours else (("from", "value"), _LLAVA_ROLES)
    messages = [_message(f"{where}, turn {number}", turn, *names, roles) for number, turn in enumerate(turns, start=1)]
    if not any(message.role == "assistant" and message.content.strip() for message in messages):
        raise ValueError(f"{where}: the conversation has no answer to learn from")
    image = None if row.get("image") is None else _string(where, row, "image")
    marks = sum(message.content.count(IMAGE_MARK) for message in messages if message.role == "user")
    if marks != (image is not None):
        raise ValueError(
            f"{where}: {marks} {IMAGE_MARK} mark(s) in the user's turns, but "
            f"{'no' if image is None else 'one'} image; a conversation has one mark for its image"
        )
    return Conversation(_identity(where, row), image, messages)


def _message(where: str, turn: Any, role_field: str, content_field: str, roles: dict[str, Role]) -> Message:
    if not isinstance(turn, dict):
        raise ValueError(f"{where}: a turn must be a mapping, not {turn!r}")
    role = _string(where, turn, role_field)
    if role not in roles:
        raise ValueError(f"{where}: {role_field!r} is {role!r}; known are {', '.join(roles)}")
    return Message(roles[role], _string(where, turn, content_field))
