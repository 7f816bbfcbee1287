"""Rows in LLaVA's form, {"id", "image"?, "conversations": [{"from", "value"}]}, to records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from corpus_parts.converting import Convert, Records, RemarkedError
from corpus_parts.keeping import Row
from revision.records import IMAGE_MARK
from revision.records.conversations import conversation_of

WHERE = "the row"
MARKED = f"rejected, since they have {IMAGE_MARK} in an answer or a system turn"


def captions(identity: str, row: Row, *, images: bool = True) -> Records:
    """A caption row, one question and one answer: the answer is a text of stage 1, and with its picture a pair."""
    turns = row.get("conversations")
    answers = [turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"] \
        if isinstance(turns, list) else []  # fmt: skip
    if len(answers) != 1:
        raise ValueError(f"it has {len(answers)} answers; a caption row has one")
    return caption(identity, answers[0], row.get("image") if images else None)


def caption(identity: str, text: Any, image: Any) -> Records:
    """The records of a caption and, where there is one, its picture; all under one id."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("its caption is missing or empty")
    text = text.strip()
    if IMAGE_MARK in text:
        raise ValueError(f"its caption has {IMAGE_MARK} in it")
    records: list[tuple[str, Row]] = [("texts", {"id": identity, "text": text})]
    if image is not None:
        path = _path(image)
        records.append(("images", {"id": identity, "image": path}))
        records.append(("pairs", {"id": identity, "image": path, "text": text}))
    return records


def talks(root: str = "", *, image_of: Callable[[Row], Any] = lambda row: row.get("image")) -> Convert:
    """A converter of conversations.

    What LLaVA's own training does is done here: turns before the first question are left out. The id of a picture is
    its path, so that conversations about one picture share its embedding. Training refuses image marks outside the
    user's turns, and does so hours later: such a conversation is rejected here, and counted.

    Args:
        root: folder that the rows' paths start from, below `images/`.
        image_of: the picture of a row.
    """

    def convert(identity: str, row: Row) -> Records:
        """A row to its records."""
        turns = row.get("conversations")
        if not isinstance(turns, list):
            raise ValueError("it has no list 'conversations'")
        asked = [place for place, turn in enumerate(turns) if isinstance(turn, dict) and turn.get("from") == "human"]
        talk: Row = {"id": identity, "conversations": turns[asked[0] :] if asked else turns}
        image = image_of(row)
        if image not in (None, "", []):
            one = image[0] if isinstance(image, list) and len(image) == 1 else image
            talk["image"] = str(PurePosixPath(root) / _path(one))
        for message in conversation_of(WHERE, talk).messages:  # holds that it is one
            if message.role != "user" and IMAGE_MARK in message.content:
                raise RemarkedError(
                    f"a turn of the {message.role} has {IMAGE_MARK} in it; the mark is kept for pictures in the user's "
                    "turns",
                    MARKED,
                )
        records: list[tuple[str, Row]] = [("conversations", talk)]
        if "image" in talk:
            records.append(("images", {"id": talk["image"], "image": talk["image"]}))
        return records

    return convert


def _path(image: Any) -> str:
    if not isinstance(image, str) or not image or "\0" in image:
        raise ValueError(f"its picture is {image!r}, not one path" if image else "its picture is missing")
    path = PurePosixPath(image)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"its picture {image!r} leads out of the folder of pictures")
    return str(path)
