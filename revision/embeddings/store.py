"""Reading an embedding store."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from revision.embeddings.layout import INDEX_HASHES, INDEX_ROWS, MANIFEST, PLAN, REJECTED, Manifest, hash_id
from revision.embeddings.mapping import map_array
from revision.files import file_sha256

_ROWS_A_SHARD = 4  # below it, a row at a time takes less time than numpy's indexing of a few
_OPEN_MAPS = 16384  # systems commonly allow 65,530 maps a process
_OPEN_COLUMNS = 8
_K = TypeVar("_K")
_V = TypeVar("_V")


class EmbeddingStore:
    """Unit rows of one encoder, with their ids and what they were made from.

    Opening reads the manifest and nothing else. Rows come from memory maps, so that processes on one machine share one
    copy in the page cache; ids and payloads are read shard by shard when asked for.
    """

    # What to do about an id that no row has.
    remedy: ClassVar[str] = "embed the records that hold it, or look for it in rejected.jsonl there"

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.dim = manifest.dim
        self._starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])  # int64 [shards + 1]
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._columns: OrderedDict[tuple[int, str], pa.ChunkedArray] = OrderedDict()

    @classmethod
    def open(cls, path: Path | str) -> EmbeddingStore:
        """Opens a finished store.

        Raises:
            ValueError: there is none, it is unfinished, or its manifest cannot be read.
        """
        path = Path(path)
        if (path / MANIFEST).is_file():
            return cls(path, Manifest.read(path / MANIFEST))
        if (path / PLAN).is_file():
            raise ValueError(f"embedding store {path} is unfinished; run `revision embed` again, it resumes")
        raise ValueError(f"there is no embedding store at {path}; run `revision embed` first")

    def __len__(self) -> int:
        return self.manifest.count

    def __reduce__(self) -> tuple[type[EmbeddingStore], tuple[Path, Manifest]]:
        """Pickled for a data-loading process as a path: each process maps the files itself, no row is copied."""
        return EmbeddingStore, (self.path, self.manifest)

    @property
    def has_ids(self) -> bool:
        """Whether `ids` are those of records, and not row numbers in their place."""
        return True

    @property
    def has_payload(self) -> bool:
        """Whether every row has a text, or the path of its picture."""
        return True

    def rows(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Rows in the order asked for.

        Args:
            index: a row number, a slice, or integers [n]; negative ones count from the end.

        Returns:
            float16 [n, d] of the caller's own; n = 1 for a single number.

        Raises:
            IndexError: a row number outside the store.
        """
        numbers = self._numbers(index)
        out = np.empty((len(numbers), self.dim), dtype=np.float16)
        if len(numbers) < _ROWS_A_SHARD * len(self.manifest.shards):
            order, shards, within = (part.tolist() for part in self._ascending(numbers))
            for place, shard, row in zip(order, shards, within, strict=True):
                out[place] = self._map(shard)[row]
            return out
        for shard, where, within in self._by_shard(numbers):
            out[where] = self._map(shard)[within]
        return out

    def chunks(self, size: int = 65536) -> Iterator[np.ndarray]:
        """All rows in order, float16 [<= size, d], without copying; writing to a chunk changes no file.

        A chunk never spans two shards, so chunks can be shorter than `size` anywhere.
        """
        for number, shard in enumerate(self.manifest.shards):
            for start in range(0, shard.rows, size):
                yield self._map(number)[start : start + size]

    def index_of(self, ids: Sequence[str]) -> np.ndarray:
        """Row numbers of ids, int64 [n].

        Raises:
            ValueError: an id without an embedding; names the first.
        """
        found = self.find(ids)
        missing = np.flatnonzero(found < 0)
        if missing.size:
            raise ValueError(
                f"id {ids[missing[0]]!r} has no embedding in {self.path} ({missing.size} of {len(ids)} ids have none); "
                f"{self.remedy}"
            )
        return found

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Row numbers of ids, int64 [n]; -1 where there is no such row.

        Candidates come from the hash index and are compared with the ids in the sidecars of the shards they lie in, so
        that a collision of hashes never gives a wrong row.
        """
        index_hashes = self._index(INDEX_HASHES)
        hashes = np.fromiter(map(hash_id, ids), dtype=np.uint64, count=len(ids))
        first = np.searchsorted(index_hashes, hashes, side="left")
        counts = np.searchsorted(index_hashes, hashes, side="right") - first
        asked = np.repeat(np.arange(len(ids)), counts)
        steps = np.arange(len(asked)) - np.repeat(np.cumsum(counts) - counts, counts)
        candidates = self._index(INDEX_ROWS)[first[asked] + steps]
        found = np.full(len(ids), -1, dtype=np.int64)
        candidate_ids = self._column("id", candidates)
        for position, row, identity in zip(asked.tolist(), candidates.tolist(), candidate_ids, strict=True):
            if identity == ids[position]:
                found[position] = row
        return found

    def rejected(self) -> dict[str, str]:
        """Ids of the records that have no embedding, and why.

        Raises:
            ValueError: the file that lists them is missing or damaged.
        """
        if not self.manifest.rejected:
            return {}
        path = self.path / REJECTED
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return {row["id"]: row["reason"] for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is missing or damaged, and should name {self.manifest.rejected} rejected records; delete the "
                "store and run `revision embed` again"
            ) from error

    def ids(self, index: int | slice | np.ndarray = slice(None)) -> list[str]:
        """Ids of rows, of all unless told; order and index as in `rows`."""
        return self._column("id", self._numbers(index))

    def payload(self, index: int | slice | np.ndarray) -> list[str]:
        """What rows were made from: the texts, or the paths of the pictures; order and index as in `rows`."""
        return self._column("payload", self._numbers(index))

    def verify(self) -> None:
        """Compares every file with the checksum in the manifest.

        Raises:
            ValueError: a file is missing or altered; names it.
        """
        expected = dict(self.manifest.index_sha256)
        for shard in self.manifest.shards:
            expected[f"{shard.name}.npy"] = shard.sha256
            expected[f"{shard.name}.parquet"] = shard.sidecar_sha256
        for name, digest in expected.items():
            file = self.path / name
            if not file.is_file() or file_sha256(file) != digest:
                raise ValueError(f"{file} is missing or altered; delete the folder and run `revision embed` again")

    def fingerprint(self) -> str:
        """sha256 that stands for the rows, their ids and their encoder, whatever the folder is called."""
        content = [
            self.manifest.encoder,
            [[shard.rows, shard.sha256, shard.sidecar_sha256] for shard in self.manifest.shards],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def state(self) -> str:
        """Text that is another one once ids or payloads may have changed; what was made of them is named after it."""
        return self.fingerprint()

    def _numbers(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Row numbers, int64 [n], each inside the store."""
        if isinstance(index, slice):
            return np.arange(*index.indices(len(self)))
        numbers = np.atleast_1d(np.asarray(index))
        if numbers.size and numbers.dtype.kind not in "iu":
            raise TypeError(f"rows are chosen by integers, not {numbers.dtype}")
        numbers = numbers.astype(np.int64)
        outside = (numbers < -len(self)) | (numbers >= len(self))
        if outside.any():
            raise IndexError(f"row {numbers[outside][0]} is outside {self.path}, which has {len(self)} rows")
        return np.where(numbers < 0, numbers + len(self), numbers)

    def _by_shard(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (shard, positions in `numbers`, rows within the shard), each shard once and its rows ascending."""
        order, shards, within = self._ascending(numbers)
        borders = [0, *(np.flatnonzero(np.diff(shards)) + 1), len(numbers)]
        for start, stop in pairwise(borders) if len(numbers) else ():
            yield int(shards[start]), order[start:stop], within[start:stop]

    def _ascending(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions in `numbers`, shards, and rows within them, each int64 [n], in the order of the store.

        Ascending access turns a random gather into something that read-ahead and the page cache can help with.
        """
        order = np.argsort(numbers, kind="stable")
        ascending = numbers[order]
        shards = np.searchsorted(self._starts, ascending, side="right") - 1
        return order, shards, ascending - self._starts[shards]

    def _column(self, name: str, numbers: np.ndarray) -> list[str]:
        out: list[str] = [""] * len(numbers)
        for shard, where, within in self._by_shard(numbers):
            column = _recent(self._columns, (shard, name), _OPEN_COLUMNS, lambda key: self._read_column(*key))
            for position, value in zip(where, column.take(pa.array(within)).to_pylist(), strict=True):
                out[position] = value
        return out

    def _read_column(self, shard: int, name: str) -> pa.ChunkedArray:
        file = self.path / f"{self.manifest.shards[shard].name}.parquet"
        try:
            column = pq.read_table(file, columns=[name]).column(name)
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise ValueError(f"{file} cannot be read ({error}); delete the folder and run `embed` again") from error
        rows = self.manifest.shards[shard].rows
        if len(column) != rows:
            raise ValueError(f"{file} has {len(column)} rows, its manifest says {rows}; embed again")
        return column

    def _map(self, shard: int) -> np.ndarray:
        """float16 [rows, d], copy on write: torch wants writable memory, and the file must stay as it is."""
        entry = self.manifest.shards[shard]
        return _recent(
            self._maps, shard, _OPEN_MAPS, lambda _: self._open_map(f"{entry.name}.npy", (entry.rows, self.dim))
        )

    def _index(self, name: str) -> np.ndarray:
        return self._open_map(name, (len(self),))

    def _open_map(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        file = self.path / name
        try:
            array = map_array(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read ({error}); delete the folder and run `embed` again") from error
        if array.shape != shape:
            raise ValueError(f"{file} has shape {array.shape}, its manifest says {shape}; embed again")
        return array


def _recent(cache: OrderedDict[_K, _V], key: _K, limit: int, make: Callable[[_K], _V]) -> _V:
    """The cached value of a key, made when there is none; the least recently used one makes room."""
    if key in cache:
        cache.move_to_end(key)
    else:
        cache[key] = make(key)
        if len(cache) > limit:
            cache.popitem(last=False)
    return cache[key]
