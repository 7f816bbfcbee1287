"""What is known of a corpus, and its files: local ones, or fetched from the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Card:
    """A published corpus.

    Attributes:
        name: slug; begins the ids of its records.
        homepage: where its publisher describes it.
        licence: as its publisher states it, or that it is not known to us.
        hub: data set on the Hugging Face hub, `owner/name`.
        files: paths of its files in that data set; locally, they are found by name.
        expected: rows in a file, by its name, where the publisher states them.
        sha256: of a file, by its name, as far as known to us.
    """

    name: str
    homepage: str
    licence: str
    hub: str
    files: tuple[str, ...]
    expected: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)


def find_files(card: Card, source: Path | None, wanted: Sequence[str]) -> list[Path]:
    """The wanted files of a corpus: below `source`, or from the hub where that is None.

    Raises:
        ValueError: one is not there, or the hub does not give it.
    """
    return [_fetched(card, name) if source is None else _found(card, source, name) for name in wanted]


def _found(card: Card, source: Path, name: str) -> Path:
    if source.is_file():
        return source
    for candidate in (source / name, *sorted(source.rglob(Path(name).name))):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"--source {source} holds no {Path(name).name}; get it from {card.homepage}, or leave --source out"
    )


def _fetched(card: Card, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(card.hub, name, repo_type="dataset"))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{name} of {card.hub} cannot be fetched ({reason}); download it from {card.homepage} and give --source"
        ) from error


def sha256_of(file: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
