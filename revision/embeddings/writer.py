"""Writing an embedding store: shard by shard, by several processes, through kills and full disks.

A shard covers a fixed range of record positions, whatever was rejected before it, so that its content depends on the
records and the encoder alone. Its sidecar becomes visible first, its rows second, each by an atomic rename after the
bytes are on disk: a shard is there when its rows are. The manifest comes last. A store that was interrupted anywhere is
therefore continued at its missing shards, and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revision.embeddings.layout import (
    INDEX_HASHES,
    INDEX_ROWS,
    MANIFEST,
    PLAN,
    REJECTED,
    VERSION,
    Manifest,
    Rejected,
    Shard,
    hash_id,
    shard_name,
)
from revision.files import HashingFile, file_sha256, write_aside, write_text, write_whole

_REJECTED_KEY = b"revision.rejected"
_SHA256_KEY = b"revision.rows_sha256"
_CUT_KEY = b"revision.cut"


class StoreWriter:
    """Writes one store. Every process (rank) of a run makes its own; rank 0 finishes it.

    Args:
        path: folder of the store; made if it is missing.
        kind: "text" or "image".
        dim: coordinates a row.
        encoder: description of the encoder; with the fingerprint it decides whether a store may be continued.
        records_fingerprint: sha256 of the records file.
        records: number of records in it.
        shard_size: records a shard.
        reject_budget: share of all records that may be rejected.
        image_root: as configured, where pictures lie elsewhere than beside their records.
        rank, world: this process and the number of processes; rank r writes shards r, r + world, ...

    Raises:
        ValueError: the folder holds a store of other records, another encoder or another shard size.
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: str,
        dim: int,
        encoder: dict[str, str],
        records_fingerprint: str,
        records: int,
        shard_size: int,
        reject_budget: float,
        image_root: str | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.path = path
        self.rank = rank
        self.world = world
        self._reject_budget = reject_budget
        self._plan = Manifest(
            version=VERSION, kind=kind, count=0, dim=dim, dtype="float16", encoder=encoder,
            records_fingerprint=records_fingerprint, image_root=image_root, records=records, rejected=0,
            shard_size=shard_size, shards=[], index_sha256={},
        )  # fmt: skip
        self._shards = -(-records // shard_size)
        self.complete = (path / MANIFEST).is_file()
        if self.complete:
            self._require_same(Manifest.read(path / MANIFEST).plan())
        elif next(path.glob("shard-*.npy"), None):
            if not (path / PLAN).is_file():
                raise ValueError(f"{path} has shards, but neither {MANIFEST} nor {PLAN} says of what; delete it")
            self._require_same(Manifest.read(path / PLAN))
        else:
            with _one_sentence(path):
                path.mkdir(parents=True, exist_ok=True)
                write_text(path / PLAN, self._plan.to_json())
        # Summed over this process's own shards; more than the budget here is more than the budget in all.
        self._rejected = 0 if self.complete else sum(len(self._rejects(shard)) for shard in self._mine(present=True))

    def missing(self) -> list[int]:
        """Numbers of the shards that this process has still to write."""
        return [] if self.complete else self._mine(present=False)

    def positions(self, shard: int) -> range:
        """Positions in the records file that a shard covers, from 0."""
        start = shard * self._plan.shard_size
        return range(start, min(start + self._plan.shard_size, self._plan.records))

    def write(
        self,
        shard: int,
        *,
        rows: np.ndarray,
        ids: Sequence[str],
        payloads: Sequence[str],
        lengths: Sequence[int],
        rejected: Sequence[Rejected],
        cut: int = 0,
    ) -> None:
        """Makes one shard visible, in full or not at all.

        Args:
            shard: its number, one of `missing()`.
            rows: unit vectors, any float dtype [n, d], in the order of the records.
            ids, payloads, lengths: of the same n records.
            rejected: the other records of the shard.
            cut: how many of the n were longer than the encoder reads.

        Raises:
            ValueError: a row that is not a finite unit vector; more rejects than the budget; a disk that is full or
                cannot be written. What was complete before stays, and `embed` resumes there.
        """
        assert len(rows) == len(ids) == len(payloads) == len(lengths)
        assert len(rows) + len(rejected) == len(self.positions(shard))
        self._require_unit_rows(rows, ids)
        self._rejected += len(rejected)
        if self._over_budget(self._rejected):
            # Those of other processes too, whose records are as much a reason and are tried anew as well.
            self._withdraw_and_stop([s for s in range(self._shards) if self._is_present(s)], rejected)
        name = shard_name(shard)
        rows = np.ascontiguousarray(rows, dtype=np.float16).reshape(-1, self._plan.dim)
        with _one_sentence(self.path):
            rows_aside, digest = write_aside(self.path / f"{name}.npy", _array_writer(rows))
            try:
                sidecar = _sidecar_bytes(ids, payloads, lengths, rejected, cut, digest)
                write_whole(self._sidecar(shard), lambda file: file.write(sidecar))
                os.replace(rows_aside, self.path / f"{name}.npy")
            finally:
                rows_aside.unlink(missing_ok=True)

    def finish(self, poll_seconds: float = 0.5) -> Manifest:
        """Rank 0: waits for the shards of the other ranks, writes the id index, `rejected.jsonl` and the manifest.

        Raises:
            ValueError: more rejects than the budget in all, nothing embedded at all, or a disk that cannot be written.
        """
        assert self.rank == 0 and not self.missing()
        if self.complete:
            return Manifest.read(self.path / MANIFEST)
        while not all(self._is_present(shard) for shard in range(self._shards)):
            time.sleep(poll_seconds)
        with _one_sentence(self.path):
            self._require_same(Manifest.read(self.path / PLAN))  # another launch may have begun something else here
        rejected = [reject for shard in range(self._shards) for reject in self._rejects(shard)]
        if self._over_budget(len(rejected)):
            self._withdraw_and_stop(range(self._shards), ())
        with _one_sentence(self.path):
            shards = [self._shard(shard) for shard in range(self._shards)]
            write_text(self.path / REJECTED, _json_lines(rejected))
            manifest = replace(
                self._plan,
                count=sum(shard.rows for shard in shards),
                rejected=len(rejected),
                shards=shards,
                index_sha256=self._write_index(),
                cut=sum(self._cut(shard) for shard in range(self._shards)),
            )
            write_text(self.path / MANIFEST, manifest.to_json())
            # Of killed processes, and of an earlier plan with more shards that left no rows.
            sidecars = set(self.path.glob("shard-*.parquet")) - {self._sidecar(shard) for shard in range(self._shards)}
            for leftover in (self.path / PLAN, *self.path.glob(".*.partial"), *sidecars):
                leftover.unlink(missing_ok=True)
        self.complete = True
        return manifest

    def _mine(self, *, present: bool) -> list[int]:
        return [s for s in range(self.rank, self._shards, self.world) if self._is_present(s) == present]

    def _is_present(self, shard: int) -> bool:
        return (self.path / f"{shard_name(shard)}.npy").is_file()

    def _sidecar(self, shard: int) -> Path:
        return self.path / f"{shard_name(shard)}.parquet"

    def _rejects(self, shard: int) -> list[Rejected]:
        metadata = pq.read_schema(self._sidecar(shard)).metadata
        return [Rejected(**reject) for reject in json.loads(metadata[_REJECTED_KEY])]

    def _cut(self, shard: int) -> int:
        return int(pq.read_schema(self._sidecar(shard)).metadata.get(_CUT_KEY, b"0"))

    def _shard(self, shard: int) -> Shard:
        with pq.ParquetFile(self._sidecar(shard)) as file:
            rows, metadata = file.metadata.num_rows, file.schema_arrow.metadata
        return Shard(shard_name(shard), rows, metadata[_SHA256_KEY].decode(), file_sha256(self._sidecar(shard)))

    def _write_index(self) -> dict[str, str]:
        """Hashes of all ids in ascending order, and the row of each; equal hashes in the order of the rows."""
        hashes = np.fromiter(
            (
                hash_id(identity)
                for shard in range(self._shards)
                for identity in pq.read_table(self._sidecar(shard), columns=["id"]).column("id").to_pylist()
            ),
            dtype=np.uint64,
        )
        order = np.argsort(hashes, kind="stable").astype(np.int64)
        return {
            INDEX_HASHES: write_whole(self.path / INDEX_HASHES, _array_writer(hashes[order])),
            INDEX_ROWS: write_whole(self.path / INDEX_ROWS, _array_writer(order)),
        }

    def _require_same(self, found: Manifest) -> None:
        ours, theirs = asdict(self._plan), asdict(found)
        changed = [name for name in ours if ours[name] != theirs[name] and name != "encoder"]
        encoder = [
            f"encoder {key}"
            for key in sorted(self._plan.encoder.keys() | found.encoder.keys())
            if self._plan.encoder.get(key) != found.encoder.get(key)
        ]
        if changed or encoder:
            raise ValueError(
                f"embedding store {self.path} was made with other settings (changed: {', '.join(changed + encoder)}); "
                "delete the folder to embed again, or choose another encoder.name or data.stores to keep both"
            )

    def _require_unit_rows(self, rows: np.ndarray, ids: Sequence[str]) -> None:
        norms = np.linalg.norm(rows.astype(np.float32), axis=1) if len(rows) else np.ones(0)
        wrong = np.flatnonzero(~(np.abs(norms - 1) < 1e-2))  # written so that NaN counts as wrong
        if wrong.size:
            raise ValueError(
                f"the encoder gave record {ids[wrong[0]]!r} a vector of length {norms[wrong[0]]}, not a "
                "unit vector; check its weights, and its dtype if it is a 16-bit one"
            )

    def _over_budget(self, rejected: int) -> bool:
        return rejected > self._reject_budget * self._plan.records or rejected == self._plan.records

    def _withdraw_and_stop(self, shards: Sequence[int], pending: Sequence[Rejected]) -> NoReturn:
        """Takes back the shards that hold rejects, so that their records are tried anew once mended."""
        rejects = {shard: found for shard in shards if (found := self._rejects(shard))}
        everything = [*chain.from_iterable(rejects.values()), *pending]
        with _one_sentence(self.path):
            write_text(self.path / REJECTED, _json_lines(everything))
            for shard in rejects:
                (self.path / f"{shard_name(shard)}.npy").unlink(missing_ok=True)  # another process may stop as well
        raise ValueError(
            f"{len(everything)} of {self._plan.records} records for {self.path} could not be embedded, more than "
            f"embed.reject_budget={self._reject_budget} allows; the first is {everything[0].id!r}: "
            f"{everything[0].reason}; mend them (all are in {self.path / REJECTED}) or raise the budget, and run "
            "`embed` again"
        )


def _sidecar_bytes(
    ids: Sequence[str],
    payloads: Sequence[str],
    lengths: Sequence[int],
    rejected: Sequence[Rejected],
    cut: int,
    sha256: str,
) -> bytes:
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "payload": pa.array(payloads, pa.string()),
            "length": pa.array(lengths, pa.int64()),
        }
    ).replace_schema_metadata(
        {
            _SHA256_KEY: sha256.encode(),
            _REJECTED_KEY: json.dumps([asdict(reject) for reject in rejected]).encode(),
            _CUT_KEY: str(cut).encode(),
        }
    )
    buffer = BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _json_lines(rejected: Sequence[Rejected]) -> str:
    return "".join(json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejected)


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise ValueError(
            f"cannot write embedding store {path}: {reason}; free space or mend the cause and run `embed` "
            "again, it resumes at the first missing shard"
        ) from error


def _array_writer(array: np.ndarray) -> Callable[[HashingFile], None]:
    return lambda file: np.lib.format.write_array(file, array, allow_pickle=False)
