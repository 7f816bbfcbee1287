"""Conversations in the forms that corpora come in: plain messages, OpenAI's lists of parts, LLaVA's and ShareGPT's."""

from __future__ import annotations

from typing import Any

from revision.records.kinds import (
    IMAGE_MARK,
    Conversation,
    Message,
    Role,
    Row,
    identity_of,
    is_absent,
    is_inside,
    path_in,
    shown,
    string_of,
)

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
_LLAVA_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip


def is_conversation(row: Row) -> bool:
    """Whether a row has turns, be they well formed or not."""
    return isinstance(row.get("messages"), list) or isinstance(row.get("conversations"), list)


def conversation_of(where: str, row: Row) -> Conversation:
    """One conversation.

    Rows have "messages" or "conversations", and their turns "role" and "content", which is a text or OpenAI's list of
    parts, or LLaVA's and ShareGPT's "from" and "value". A picture is named by "image", by a list of one "images", or by
    the parts. One that lies in the row itself goes by the row's id, as it does where the same file is an image source.

    Raises:
        ValueError: a malformed row; no answer; two pictures; `<image>` marks that do not fit the picture.
    """
    ours = isinstance(row.get("messages"), list)
    turns = row.get("messages" if ours else "conversations")
    if not isinstance(turns, list):
        raise ValueError(f"{where}: it needs a list 'messages' (role, content) or 'conversations' (from, value)")
    messages, pictures = [], _named(where, row)
    for number, turn in enumerate(turns, start=1):
        message, found = _message(f"{where}, turn {number}", turn, ours)
        messages.append(message)
        pictures += [picture for picture in found if picture not in pictures]
    if not any(message.role == "assistant" and message.content.strip() for message in messages):
        raise ValueError(f"{where}: the conversation has no answer to learn from")
    if len(pictures) > 1:
        raise ValueError(f"{where}: {len(pictures)} pictures; a conversation is about one at most: split it")
    image = pictures[0] if pictures else None
    marks = sum(message.content.count(IMAGE_MARK) for message in messages if message.role == "user")
    if marks != (image is not None):
        raise ValueError(
            f"{where}: {marks} {IMAGE_MARK} mark(s) in the user's turns, but "
            f"{'no' if image is None else 'one'} image; a conversation has one mark for its image"
        )
    return Conversation(identity_of(where, row), image, messages)


def _named(where: str, row: Row) -> list[str]:
    """The pictures that a row names beside its turns."""
    field = "images" if is_absent(row.get("image")) else "image"
    value = row.get(field)
    if is_absent(value):
        return []
    return [
        identity_of(where, row) if is_inside(one) else string_of(where, {field: path_in(one)}, field)
        for one in (value if isinstance(value, list) else [value])
    ]


def _message(where: str, turn: Any, ours: bool) -> tuple[Message, list[str]]:
    """A turn, and the pictures that its parts name; `ours` decides where it has neither role nor from."""
    if not isinstance(turn, dict):
        raise ValueError(f"{where}: a turn must be a mapping, not {shown(turn)}")
    # A table may have all four fields, and null in those that are not meant.
    if turn.get("role") is None and (turn.get("from") is not None or not ours):
        role_field, content_field, roles = "from", "value", _LLAVA_ROLES
    else:
        role_field, content_field, roles = "role", "content", _ROLES
    role = string_of(where, turn, role_field)
    if role not in roles:
        raise ValueError(
            f"{where}: {role_field!r} is {shown(role)}; known are {', '.join(roles)}: leave the conversation out, or "
            "write it in these"
        )
    if not isinstance(turn.get(content_field), list):
        return Message(roles[role], string_of(where, turn, content_field)), []
    texts: list[str] = []
    pictures: list[str] = []
    for part in turn[content_field]:
        text, picture = _part(where, part)
        texts.append(text)
        pictures += [] if picture is None else [picture]
    # A mark stands on a line of its own, as in LLaVA's form; texts follow each other as they are.
    joined = "".join(f"{text}\n" if text == IMAGE_MARK else text for text in texts)
    return Message(roles[role], joined.removesuffix("\n") if texts[-1:] == [IMAGE_MARK] else joined), pictures


def _part(where: str, part: Any) -> tuple[str, str | None]:
    """The text that a part of a content becomes, and the picture that it names."""
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError(f"{where}: a part of a content must be a mapping with a 'type', not {shown(part)}")
    # A table writes every field into every part; what is null there is not meant.
    part = {name: value for name, value in part.items() if value is not None}
    match part["type"]:
        case "text" | "input_text" | "output_text":
            return string_of(where, part, "text"), None
        case "image_url" | "input_image" | "image":
            holder = part.get("image_url", part.get("image", part.get("path", part.get("url"))))
            if holder is None:  # the row names it
                return IMAGE_MARK, None
            name = string_of(where, holder if isinstance(holder, dict) else {"url": holder}, "url")
            if name.startswith("data:"):
                raise ValueError(
                    f"{where}: the picture is given as data inside the message; give the id of a row of an image "
                    "store, and embed the picture from a records file"
                )
            return IMAGE_MARK, name
        case kind:
            raise ValueError(f"{where}: a part of type {shown(kind)}; known are text, image_url and image")
