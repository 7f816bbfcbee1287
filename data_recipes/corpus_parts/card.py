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
        moved: of a file, other paths under which it has been published; tried in turn where the first is not there.
        expected: rows in a file, by its name, where the publisher states them.
        sha256: of a file, by its name, as far as known to us.
    """

    name: str
    homepage: str
    licence: str
    hub: str
    files: tuple[str, ...]
    moved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    def paths_of(self, name: str) -> tuple[str, ...]:
        """Where one of the files may lie in the data set, the likeliest path first."""
        return (name, *self.moved.get(name, ()))


def find_files(card: Card, source: Path | None, wanted: Sequence[str]) -> dict[Path, str]:
    """The wanted files of a corpus, each with its name there: below `source`, or from the hub where that is None.

    Where `source` is a file and several are wanted, it is the one that has its name, and the others are left out.

    Raises:
        ValueError: one is not there, or the hub does not give it; or `source` is a file that cannot be told to be a
            wanted one.
    """
    if source is None:
        return {_fetched(card, name): name for name in wanted}
    if source.is_file():
        return {source: _named(card, source, wanted)}
    return {_found(card, source, name): name for name in wanted}


def _named(card: Card, source: Path, wanted: Sequence[str]) -> str:
    """Which of the wanted files a single file is: the one of its name, or the only one, under any name of its own."""
    named = {Path(path).name: name for name in card.files for path in card.paths_of(name)}
    name = named.get(source.name, wanted[0] if len(wanted) == 1 else None)
    if name is not None and name in wanted:
        return name
    wishes = ", ".join(Path(one).name for one in wanted)
    raise ValueError(
        f"--source {source} is one file, and not by its name one of those that are wanted, {wishes}; give their folder"
    )


def _found(card: Card, source: Path, name: str) -> Path:
    for path in card.paths_of(name):
        for candidate in (source / path, *sorted(source.rglob(Path(path).name))):
            if candidate.is_file():
                return candidate
    raise ValueError(
        f"--source {source} holds no {Path(name).name}; get it from {card.homepage}, or leave --source out"
    )


def _fetched(card: Card, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    reasons = []
    for path in card.paths_of(name):
        try:
            return Path(hf_hub_download(card.hub, path, repo_type="dataset"))
        except (OSError, HfHubHTTPError, HFValidationError) as error:
            reasons.append(str(error).strip().split("\n")[0])
    raise ValueError(
        f"{name} of {card.hub} cannot be fetched ({reasons[0]}); download it from {card.homepage} and give --source"
    )


def sha256_of(file: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
