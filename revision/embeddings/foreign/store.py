"""Foreign embeddings behind the reading interface of an embedding store."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from revision.embeddings.foreign.finding import find_parts
from revision.embeddings.foreign.parts import Column, Part, Rows, file_sample, memory_dtype, native
from revision.embeddings.layout import VERSION, Manifest, Shard, hash_id
from revision.embeddings.store import EmbeddingStore, _recent

_OPEN_PARTS = 256  # each may hold a file descriptor; systems commonly allow 1024
_LENGTH_TOLERANCE = 1e-2  # as for rows that go into a store


class ForeignStore(EmbeddingStore):
    """Rows, ids and texts in files of another program, read where they lie: no conversion, no second copy.

    What differs from a store of our own: rows keep the dtype of their file (bfloat16 becomes float32); `chunks` gives
    them as they are stored and `rows` as unit vectors; a format without ids has the row numbers as ids; one without
    texts or paths has no payload; the encoder is what the caller says it is; and the fingerprint stands for sizes and
    samples of the files.
    """

    remedy = "compare the ids there with those of the records"

    def __init__(self, path: Path, manifest: Manifest, parts: Sequence[Part]) -> None:
        super().__init__(path, manifest)
        self._parts = list(parts)
        self._dtype = np.result_type(*(memory_dtype(part.dtype) for part in parts))
        self._rows: OrderedDict[int, Rows] = OrderedDict()
        self._labels: OrderedDict[tuple[int, str], Column | None] = OrderedDict()

    @classmethod
    def at(cls, path: Path, kind: str, encoder: dict[str, str]) -> ForeignStore:
        """Opens the embeddings at a path.

        Args:
            path: a file or folder, or either followed by the name of a column; `docs/formats.md` lists the formats.
            kind: "text" or "image": what the rows are embeddings of.
            encoder: description of the encoder that made them, which the files do not tell.

        Raises:
            ValueError: nothing that can be read lies there; a file is truncated, or of another dimension; a pickle
                names anything but numpy arrays.
        """
        parts = find_parts(path, kind)
        manifest = Manifest(
            version=VERSION, kind=kind, count=sum(part.rows for part in parts), dim=parts[0].dim,
            dtype=parts[0].dtype, encoder=encoder, records_fingerprint="", image_root=None,
            records=sum(part.rows for part in parts), rejected=0, shard_size=0,
            shards=[Shard(part.name, part.rows, "", "") for part in parts], index_sha256={},
        )  # fmt: skip
        return cls(path, manifest, parts)

    def __reduce__(self) -> tuple[type[ForeignStore], tuple[Path, Manifest, Sequence[Part]]]:  # type: ignore[override]
        """Pickled for a data-loading process without any row: each process maps the files itself."""
        return ForeignStore, (self.path, self.manifest, self._parts)

    @property
    def has_ids(self) -> bool:
        """Whether every row has an id in its file; row numbers stand in for those that have none."""
        return all(part.has("id") for part in self._parts)

    @property
    def has_payload(self) -> bool:
        """Whether every row has a text, or the path of its picture."""
        return all(part.has("payload") for part in self._parts)

    def rows(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Unit rows in the order asked for; a row that is none (by more than a hundredth) is divided by its length.

        Args:
            index: a row number, a slice, or integers [n]; negative ones count from the end.

        Returns:
            [n, d] of the dtype of the files, bfloat16 as float32; n = 1 for a single number.

        Raises:
            IndexError: a row number outside the store.
            ValueError: a row that is zero, NaN or infinite, or a file that went away.
        """
        numbers = self._numbers(index)
        out = np.empty((len(numbers), self.dim), dtype=self._dtype)
        for part, where, within in self._by_shard(numbers):
            out[where] = native(self._opened(part)[within], self._parts[part].dtype)
        wide = out.astype(np.promote_types(out.dtype, np.float32), copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # of damaged rows, which are refused here
            norms = np.linalg.norm(wide, axis=1)
        if not (np.isfinite(norms) & (norms > 0)).all():
            row = numbers[np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[0]]
            raise ValueError(f"row {row} of {self.path} is zero, NaN or infinite; remove it or embed it again")
        off = np.abs(norms - 1) > _LENGTH_TOLERANCE
        out[off] = wide[off] / norms[off, None]
        return out

    def chunks(self, size: int = 65536) -> Iterator[np.ndarray]:
        """All rows in order as they are stored, [<= size, d] of the dtype of their file, bfloat16 as float32.

        Nothing is copied where the format allows; a chunk may be read-only, and writing to one changes no file.
        """
        for part in self._parts:
            yield from part.stream(size)

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Row numbers of ids, int64 [n]; -1 where there is no such row.

        Raises:
            ValueError: an id that several rows of the store have; names the first.
        """
        known, rows = self._by_hash
        hashes = np.fromiter(map(hash_id, ids), dtype=np.uint64, count=len(ids))
        first, last = (np.searchsorted(known, hashes, side=side) for side in ("left", "right"))
        found = np.full(len(ids), -1, dtype=np.int64)
        while (open_ := np.flatnonzero((found < 0) & (first < last))).size:  # once, unless hashes collide
            candidates = rows[first[open_]]
            known_ids = self._column("id", candidates)
            same = [ids[place] == one for place, one in zip(open_.tolist(), known_ids, strict=True)]
            found[open_[same]] = candidates[same]
            first = first + 1
        return found

    def verify(self) -> None:
        """Reads everything once.

        Raises:
            ValueError: a file cannot be read, a row is zero, NaN or infinite, or two rows have one id.
        """
        done = 0
        for chunk in self.chunks():
            norms = np.linalg.norm(chunk.astype(np.float64), axis=1)
            wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
            if wrong.size:
                raise ValueError(f"row {done + wrong[0]} of {self.path} is zero, NaN or infinite; embed it again")
            done += len(chunk)
        self.find([])  # makes the index, which refuses two rows of one id

    def fingerprint(self) -> str:
        """sha256 of sizes and samples of all files in order, whatever their folder is called, and of what is read."""
        return self._fingerprint

    def state(self) -> str:
        """Fingerprint, and the times of all files: their samples may miss a changed line."""
        return json.dumps([self._fingerprint, *(file.stat().st_mtime_ns for file in self._files)])

    @cached_property
    def _files(self) -> list[Path]:
        return list(dict.fromkeys(file for part in self._parts for file in part.files))

    @cached_property
    def _fingerprint(self) -> str:
        choices = [part.choice for part in self._parts]
        content = [self.manifest.kind, self.dim, len(self), [file_sample(file) for file in self._files], choices]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def _by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all ids, uint64 ascending, and the row of each; made when an id is first looked up.

        Raises:
            ValueError: two rows have one id; names it.
        """
        hashes = np.empty(len(self), np.uint64)
        for start in range(0, len(self), 65536):
            found = self._column("id", np.arange(start, min(start + 65536, len(self))))
            hashes[start : start + len(found)] = [hash_id(identity) for identity in found]
        order = np.argsort(hashes, kind="stable")
        ascending = hashes[order]
        self._require_unique(order[np.isin(ascending, ascending[1:][ascending[1:] == ascending[:-1]])])
        return ascending, order

    def _require_unique(self, suspects: np.ndarray) -> None:
        """Holds that no two of some rows, those whose hashes other rows share, have one id."""
        seen: dict[str, int] = {}
        for row, identity in zip(suspects.tolist(), self._column("id", suspects), strict=True):
            first = seen.setdefault(identity, row)
            if first != row:
                raise ValueError(
                    f"id {identity!r} occurs twice in {self.path}: rows {first} and {row}; give each row an id of its "
                    "own, in a column named id"
                )

    def _column(self, name: str, numbers: np.ndarray) -> list[str]:
        out: list[str] = [""] * len(numbers)
        for part, where, within in self._by_shard(numbers):
            column = self._label(part, name)
            if column is not None:
                values = column.take(within)
            elif name == "id":
                values = [str(number) for number in (within + self._starts[part]).tolist()]
            else:
                what = "texts" if self.manifest.kind == "text" else "paths of pictures"
                raise ValueError(
                    f"{self._parts[part].name} has no {what}; give a column such as "
                    f"{'caption' if self.manifest.kind == 'text' else 'image_path'!r} beside the embeddings"
                )
            for position, value in zip(where.tolist(), values, strict=True):
                out[position] = value
        return out

    def _label(self, part: int, name: str) -> Column | None:
        return _recent(self._labels, (part, name), _OPEN_PARTS, lambda _: self._parts[part].column(name))

    def _opened(self, part: int) -> Rows:
        try:
            return _recent(self._rows, part, _OPEN_PARTS, lambda _: self._parts[part].open())
        except OSError as error:
            raise ValueError(f"{self._parts[part].name} cannot be read: {error.strerror or error}") from error
