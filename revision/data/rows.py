"""Embeddings by row number, as the model reads them: out of memory-mapped stores, aligned on the fly.

A row of a text store stands for a picture that nobody has, so the alignment moves it to where pictures are; a row of an
image store is a picture, and stays as it is unless the alignment moves pictures too (ReVision v3, Sec. 4).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from revision.alignment import Alignment, ImageSide
from revision.embeddings import EmbeddingStore

TEXT, IMAGE = "text", "image"  # what the rows of a store are of, as its manifest says
REJECTED = -2  # row of a record that its store has rejected; -1 is no row at all

_NOISE = 1  # sets the draws of noise apart from others of the same seed and row


class Rows:
    """Embeddings by row number, across several stores of one encoder in the order given.

    Args:
        stores: of texts, of images, or of both; at least one.
        embed_dim: dimension that the model reads.
        alignment: applied to every row of a text store, and its side for images, where it has one, to every row of an
            image store; None leaves all rows as they are.
        noise_std: standard deviation of Gaussian noise that is added to each coordinate of the unit vector, which is
            then normalised again; drawn anew for each row and epoch. A picture lies off the point of its caption, and
            noise teaches the projector to read a neighbourhood instead of a point.
        noisy: kinds of stores whose rows get that noise.
        seed: of the noise.

    Raises:
        ValueError: another dimension, or stores of two encoders.
    """

    def __init__(
        self,
        stores: Sequence[EmbeddingStore],
        *,
        embed_dim: int,
        alignment: Alignment | None = None,
        noise_std: float = 0.0,
        noisy: Collection[str] = (TEXT, IMAGE),
        seed: int = 0,
    ) -> None:
        self.stores = list(stores)
        self.alignment = alignment
        self.noise_std, self.noisy, self.seed = noise_std, noisy, seed
        # In shared memory: workers that live through several epochs see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        for store in self.stores:
            if store.dim != embed_dim:
                raise ValueError(
                    f"the store {store.path} has rows of dimension {store.dim}, but the model reads {embed_dim}; embed "
                    "with the encoder that the model was made for, or pretrain a projector for this one"
                )
            if store.manifest.encoder != self.stores[0].manifest.encoder:
                raise ValueError(
                    f"the stores {self.stores[0].path} and {store.path} come from two encoders; embed both with one"
                )
        if alignment is not None and alignment.dim != embed_dim:
            raise ValueError(
                f"the alignment is of dimension {alignment.dim}, but the model reads {embed_dim}; align the stores of "
                "this encoder"
            )
        self._moves = [_move(alignment, store.manifest.kind) for store in self.stores]
        self._starts = np.cumsum([0, *(len(store) for store in self.stores)])

    def set_epoch(self, epoch: int) -> None:
        """Training epoch, from 0 on: noise is drawn anew in each."""
        self._epoch.fill_(epoch)

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Row numbers of ids, int64 [n], each in the first store that has it; `REJECTED` for a record that was met and
        rejected when its store was made.

        Raises:
            ValueError: an id that no store knows, or one that two rows of a store have; names the first.
        """
        found = np.full(len(ids), -1, dtype=np.int64)
        for store, start in zip(self.stores, self._starts.tolist(), strict=False):
            left = np.flatnonzero(found < 0)
            if len(left):
                rows = store.find([ids[place] for place in left.tolist()])
                found[left] = np.where(rows < 0, rows, rows + start)
        missing = np.flatnonzero(found < 0).tolist()
        if missing:
            known = set[str]().union(*(store.rejected() for store in self.stores))
            unknown = [ids[place] for place in missing if ids[place] not in known]
            if unknown:
                names = ", ".join(str(store.path) for store in self.stores)
                raise ValueError(
                    f"id {unknown[0]!r} has no embedding in {names} ({len(unknown)} of {len(ids)} ids have none); "
                    f"{self.stores[0].remedy}"
                )
            found[missing] = REJECTED
        return found

    def kind_of(self, row: int | None) -> str:
        """What the row of a sample is of, "text" or "image"; "none" for no row."""
        return "none" if row is None else str(self.stores[int(self._store_of(row))].manifest.kind)

    def __getitem__(self, row: int) -> torch.Tensor:
        """Float32 [d]; noise, of the alignment's or our own, is a function of (seed, epoch, row)."""
        return self.many([row])[0]

    def many(self, rows: Sequence[int]) -> torch.Tensor:
        """Float32 [n, d], as each alone would be, in a fraction of the time."""
        numbers = np.asarray(rows, dtype=np.int64)
        which = self._store_of(numbers)
        found = np.empty((len(numbers), self.stores[0].dim), dtype=np.float32)
        for one in np.unique(which):
            found[which == one] = self._read(int(one), numbers[which == one])
        return torch.from_numpy(found)

    def _read(self, which: int, numbers: np.ndarray) -> np.ndarray:
        """Rows of one store, by their numbers across all."""
        store, move = self.stores[which], self._moves[which]
        vectors = store.rows(numbers - self._starts[which]).astype(np.float32)
        if move is not None:
            vectors = move.apply(vectors, row_ids=numbers.tolist(), epoch=int(self._epoch))
        if self.noise_std > 0 and store.manifest.kind in self.noisy:
            seeds = ([self.seed, int(self._epoch), number, _NOISE] for number in numbers.tolist())
            noise = np.stack([np.random.default_rng(seed).normal(size=store.dim) for seed in seeds])
            noisy = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) + self.noise_std * noise
            vectors = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
        return vectors

    def _store_of(self, rows: int | np.ndarray) -> np.ndarray:
        return np.asarray(np.searchsorted(self._starts, rows, side="right") - 1)


def _move(alignment: Alignment | None, kind: str) -> Alignment | ImageSide | None:
    """What moves the rows of a store of that kind; None: nothing, to the last bit."""
    if alignment is None or kind == TEXT:
        return alignment
    return ImageSide(alignment) if alignment.moves_images else None
