"""What the files of an embedding store are called and hold; `docs/formats.md` is the description for readers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

VERSION = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"  # the manifest of a store that is not finished: what is being embedded, without its shards
REJECTED = "rejected.jsonl"
INDEX_HASHES = "index-hashes.npy"
INDEX_ROWS = "index-rows.npy"


@dataclass(frozen=True)
class Rejected:
    """A record that has no embedding, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One shard of a finished store.

    Attributes:
        name: `shard-00000`; the rows lie in `<name>.npy`, their sidecar in `<name>.parquet`.
        rows: number of embeddings, which is the number of records of the shard less those rejected.
        sha256: of the rows' file.
        sidecar_sha256: of the sidecar.
    """

    name: str
    rows: int
    sha256: str
    sidecar_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a store holds and what it was made from.

    Attributes:
        version: of this layout.
        kind: "text" or "image".
        count: rows in all.
        dim: coordinates a row.
        dtype: "float16".
        encoder: description of the encoder (`DualEncoder.describe`).
        records_fingerprint: sha256 of the records file.
        image_root: folder that relative picture paths start from, where the configuration gave one.
        records: records in the file: `count` plus `rejected`.
        rejected: records without an embedding.
        shard_size: records a shard, except the last.
        shards: in the order of the records.
        index_sha256: of the two files of the id index.
        cut: texts that were longer than the encoder reads; 0 too in stores from before it was counted.
    """

    version: int
    kind: str
    count: int
    dim: int
    dtype: str
    encoder: dict[str, str]
    records_fingerprint: str
    image_root: str | None
    records: int
    rejected: int
    shard_size: int
    shards: list[Shard]
    index_sha256: dict[str, str]
    cut: int = 0

    def plan(self) -> Manifest:
        """The part that is known before anything is embedded; two runs with equal plans make equal stores."""
        return replace(self, count=0, rejected=0, shards=[], index_sha256={}, cut=0)

    def to_json(self) -> str:
        """Canonical JSON text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads a manifest or a plan.

        Raises:
            ValueError: not JSON, of another version, or with other fields than this version has.
        """
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); delete the folder and run `embed` again") from error
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION:
            raise ValueError(f"{path} has version {version!r}, this program reads {VERSION}; embed again")
        try:
            return cls(**{**content, "shards": [Shard(**shard) for shard in content["shards"]]})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a manifest of version {VERSION}: {error}; embed again") from error


def shard_name(number: int) -> str:
    """`shard-00007` for 7."""
    return f"shard-{number:05d}"


def hash_id(identity: str) -> int:
    """Unsigned 64-bit hash of a record id, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")
