"""Writing results so that each is there in full or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from revision.embeddings.layout import write_whole


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Writes an indented JSON file. NaN and infinity are a ValueError: JSON has none."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line; NaN and infinity as in `write_json`."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_png(path: Path, save: Callable[[BytesIO], object]) -> None:
    """Writes what `save` puts into a buffer."""
    buffer = BytesIO()
    save(buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(buffer.getvalue()))
