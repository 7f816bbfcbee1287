"""The mark that a finished recipe leaves: what it made, and from which code and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

MARK = "recipe.json"


def fingerprint(files: Sequence[Path]) -> str:
    """sha256 of the contents of files, in the order given: what records are a function of."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_finished(out: Path, made_from: str) -> bool:
    """Whether the corpus in `out` was made, to the end, from what has this fingerprint."""
    mark = out / MARK
    return mark.is_file() and json.loads(mark.read_text()).get("fingerprint") == made_from


def unmark(out: Path) -> None:
    """Makes the folder, and takes back the mark while its contents change."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).unlink(missing_ok=True)


def mark(out: Path, made_from: str, counts: dict[str, int]) -> None:
    """Says that the corpus in `out` is finished."""
    (out / MARK).write_text(json.dumps({"fingerprint": made_from, "counts": counts}, indent=2) + "\n")
