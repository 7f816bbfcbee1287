"""The two files of a saved alignment: vectors in `alignment.safetensors`, facts in `alignment.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import UnionType
from typing import Any

import safetensors.torch
import torch

from revision.files import write_text, write_whole

FORMAT = 1
TENSORS_FILE = "alignment.safetensors"
FACTS_FILE = "alignment.json"
AGAIN = "run `revision align` again, or Alignment.save"

# What every version has written, an object before its entries; later additions are optional.
FIELDS: dict[str, type | UnionType] = {
    "method": str,
    "parameters": dict,
    "text": dict,
    "text.count": int,
    "text.fingerprint": str | None,
    "image": dict,
    "image.count": int,
    "image.fingerprint": str | None,
    "centroid_gap": dict,
    "centroid_gap.after": float | int | None,
    "tensors_sha256": str,
}
TENSORS = ("text.mean", "text.scatter", "image.mean", "image.scatter")


def write(folder: Path, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write both files, each replaced in one step.

    The facts carry the hash of the vectors, so that a stop between the two replacements is noticed when reading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save(tensors)
    digest = write_whole(folder / TENSORS_FILE, lambda file: file.write(data))
    record = json.dumps({"format": FORMAT, **facts, "tensors_sha256": digest}, indent=2) + "\n"
    write_text(folder / FACTS_FILE, record)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Facts and vectors of a saved alignment.

    Raises:
        ValueError: a file is missing, the JSON does not parse, its format is another one, it lacks a field, or the two
            do not belong together.
    """
    for name in (FACTS_FILE, TENSORS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"no alignment in {folder}: {name} is missing; run `revision align`, or Alignment.save")
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / FACTS_FILE} is not JSON ({error}): save the alignment again") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ValueError(f"{folder / FACTS_FILE} is not of alignment format {FORMAT}: save the alignment again")
    for name, kind in FIELDS.items():
        _require(facts, name, kind, folder / FACTS_FILE)
    data = (folder / TENSORS_FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != facts["tensors_sha256"]:
        raise ValueError(f"{TENSORS_FILE} and {FACTS_FILE} in {folder} are of two saves: save the alignment again")
    tensors = safetensors.torch.load(data)
    for name in TENSORS:
        if name not in tensors:
            raise ValueError(f"{folder / TENSORS_FILE} holds no {name!r}, so it is of another version: {AGAIN}")
    return facts, tensors


def _require(facts: dict[str, Any], name: str, kind: type | UnionType, file: Path) -> None:
    """Refuse facts without a field, `section.entry` for one within an object, or with one of another type."""
    *section, entry = name.split(".")
    holder = facts[section[0]] if section else facts
    if entry not in holder:
        raise ValueError(f"{file} holds no {name!r}, so it is damaged or of another version: {AGAIN}")
    if not isinstance(holder[entry], kind):
        raise ValueError(f"{file} holds {name!r} = {holder[entry]!r}, so it is damaged or of another version: {AGAIN}")
