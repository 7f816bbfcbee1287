"""Whether what lies on disk is what was written: checkpoints, models, embedding stores and alignments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from revision import folders
from revision.alignment.files import FACTS_FILE
from revision.alignment.files import read as read_alignment
from revision.embeddings import EmbeddingStore
from revision.embeddings.layout import MANIFEST, PLAN

_MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        path: its folder.
        kind: "checkpoint", "model", "store", "alignment" or "leftover".
        fault: what is broken about it; None: nothing.
        remark: what the reader should know all the same; empty: nothing.
    """

    path: Path
    kind: str
    fault: str | None
    remark: str = ""


def verify(path: Path) -> Iterator[Finding]:
    """Looks at a folder, and where it is none of the known kinds at all those below it.

    Raises:
        ValueError: there is no such folder.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; name a checkpoint, a model, a store, or a folder above some")
    found = _look_at(path)
    if found is not None:
        yield found
        return
    for below in sorted(one for one in path.iterdir() if one.is_dir()):
        yield from verify(below)


def _look_at(path: Path) -> Finding | None:
    if path.name.startswith(".") and path.suffix in (".part", ".old", ".gone"):
        return Finding(path, "leftover", None, "of a run that was killed; its next start clears it away")
    if path.name.removeprefix("damaged-").startswith("checkpoint-"):
        return Finding(path, "checkpoint", _manifest_fault(path))
    if (path / _MODEL_CONFIG).is_file():
        return _model(path)
    if any(next(path.glob(mark), None) for mark in (MANIFEST, PLAN, "shard-*.npy")):
        return Finding(path, "store", _store_fault(path))
    if (path / FACTS_FILE).is_file():
        return Finding(path, "alignment", _alignment_fault(path))
    return None


def _manifest_fault(path: Path) -> str | None:
    try:
        found = folders.faults(path, folders.read_manifest(path))
    except ValueError as error:
        return str(error)
    return "; ".join(found) or None


def _model(path: Path) -> Finding:
    """Against its manifest; one that another program wrote has none, and is read as far as it can be checked."""
    if (path / folders.MANIFEST).is_file():
        return Finding(path, "model", _manifest_fault(path))
    index = path / "model.safetensors.index.json"
    try:
        wanted = set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else set()
        json.loads((path / _MODEL_CONFIG).read_bytes())
        for file in sorted({*path.glob("*.safetensors"), *(path / name for name in wanted)}):
            with safe_open(file, "pt") as tensors:  # holds the length of the file against its header
                tensors.keys()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return Finding(path, "model", str(error).strip().split("\n")[0])
    return Finding(path, "model", None, f"it has no {folders.MANIFEST}: headers and sizes only were looked at")


def _store_fault(path: Path) -> str | None:
    try:
        EmbeddingStore.open(path).verify()
    except ValueError as error:
        return str(error)
    return None


def _alignment_fault(path: Path) -> str | None:
    try:
        read_alignment(path)
    except (ValueError, SafetensorError) as error:
        return str(error)
    return None
