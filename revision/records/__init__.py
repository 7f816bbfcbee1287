"""Records: what a text, an image, a pair and a conversation are, and the readers of every file format they come in.

A *location* is a file, a folder, a pattern such as `shards/*.tar`, or a data set `hf://owner/name?split=train`. What
lies there is found out by its content. Formats and fields are described in `docs/formats.md`. Everything streams, and
every error names the file and the line, item or row.
"""

from revision.records.kinds import (
    IMAGE_MARK,
    Conversation,
    Fields,
    Image,
    Located,
    Location,
    Message,
    Pair,
    Role,
    Row,
    Text,
)
from revision.records.reading import (
    count_records,
    fingerprint,
    read_conversations,
    read_images,
    read_pairs,
    read_rows,
    read_texts,
)
from revision.records.spans import Spans

__all__ = [
    "IMAGE_MARK",
    "Conversation",
    "Fields",
    "Image",
    "Located",
    "Location",
    "Message",
    "Pair",
    "Role",
    "Row",
    "Spans",
    "Text",
    "count_records",
    "fingerprint",
    "read_conversations",
    "read_images",
    "read_pairs",
    "read_rows",
    "read_texts",
]
