"""Folders that are there whole or not at all, with the checksum of each file in a manifest."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from revision.files import file_sha256, write_json

MANIFEST = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """What the manifest knows of one file: its size in bytes and its sha256."""

    bytes: int
    sha256: str


def names_of(folder: Path) -> list[str]:
    """Files of a folder and of those below it, the manifest apart, as sorted relative names."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in (file.relative_to(folder).as_posix() for file in files) if name != MANIFEST)


def record(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Forces some files of a folder down to the disk and takes their checksums.

    Raises:
        OSError: the disk cannot be written.
    """
    entries = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        entries[name] = Entry((folder / name).stat().st_size, file_sha256(folder / name))
    return entries


@contextmanager
def writing(
    place: Path, onward: str = "the same command goes on from its last checkpoint, if there is one"
) -> Iterator[None]:
    """Turns what the disk refuses, while a file or a folder is written, into one sentence.

    Args:
        place: the file or folder.
        onward: what helps once the cause is mended; the default is that of a training stage.

    Raises:
        ValueError: names the place and the reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{place} cannot be written: {reason_of(error)}; mend the cause, and {onward}") from error


def reason_of(error: Exception) -> str:
    """Why something could not be written, in one line; libraries hide the system's error number in their text."""
    known = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if known or "No space left" in str(error):
        return "the disk is full"
    if "Connection closed by peer" in str(error):
        return "another process has stopped, and said why"
    return str(error).strip().split("\n")[0]


def write_manifest(folder: Path, entries: Mapping[str, Entry], **facts: Any) -> None:
    """Writes the manifest: what `record` found, and facts worth knowing."""
    content = {"version": VERSION, **facts, "files": {name: asdict(entries[name]) for name in sorted(entries)}}
    write_json(folder / MANIFEST, content)


def publish(aside: Path, folder: Path) -> None:
    """Makes a folder that was written aside visible under its own name, in place of what was there.

    The old content is gone only when the new one is on the disk.
    """
    for one in {aside, *(file.parent for file in aside.rglob("*"))}:
        _sync(one)
    before = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        os.replace(folder, before)
    os.replace(aside, folder)
    _sync(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Entry]:
    """The files that a folder should hold.

    Raises:
        ValueError: there is no manifest, or it is none of this version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{MANIFEST} is missing")
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise ValueError(f"{MANIFEST} is of version {content['version']}, this program reads {VERSION}")
        return {name: Entry(**entry) for name, entry in content["files"].items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error


def faults(folder: Path, entries: Mapping[str, Entry]) -> list[str]:
    """Which of these files are missing or altered, a few words each."""
    found = []
    for name, entry in entries.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif (size := file.stat().st_size) != entry.bytes:
            found.append(f"{name} has {size:,} bytes, not {entry.bytes:,}")
        elif file_sha256(file) != entry.sha256:
            found.append(f"{name} has been altered")
    return found


def _sync(folder: Path) -> None:
    """A rename is on the disk when the folder that it happened in is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
