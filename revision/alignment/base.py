"""What every alignment shares: fitting on two sources, applying to rows, saving.

An alignment maps text embeddings towards the image distribution of the same dual encoder; image embeddings stay as
they are, so nothing changes when the model meets real pictures (ReVision v3, Sec. 4). A method is one subclass, which
says what vectors it derives from the statistics (`_solve`) and how it maps unit rows with them (`_map`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, overload

import numpy as np
import torch

from revision.alignment import files
from revision.alignment.moments import Moments, all_reduce, measure
from revision.alignment.rows import Array, Source, Store, blocks, check_array, to_sphere, unit_blocks
from revision.embeddings import hash_id

RowIds: TypeAlias = Sequence[int] | Sequence[str] | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Statistics:
    """What an alignment was fitted on.

    Attributes:
        text, image: moments of the unit rows of each side.
        text_fingerprint, image_fingerprint: of the stores they came from; None for rows that came from elsewhere.
        gap_after: distance between the mean of the mapped text rows (no noise added) and the image mean; None where the
            caller did without the pass that measures it.
    """

    text: Moments
    image: Moments
    text_fingerprint: str | None
    image_fingerprint: str | None
    gap_after: float | None

    @property
    def gap_before(self) -> float:
        """Distance between the two means, ||mu_y - mu_x||."""
        return distance(self.text.mean, self.image.mean)


class Alignment(ABC):
    """A map of text embeddings, fitted on unpaired text and image embeddings of one dual encoder."""

    method: ClassVar[str]

    def __init__(self) -> None:
        self._statistics: Statistics | None = None
        self._vectors: dict[str, torch.Tensor] = {}

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """Keyword arguments that make an unfitted copy of this alignment; they must be JSON values."""

    @abstractmethod
    def _solve(self, text: Moments, image: Moments, mapped_mean: Callable[[], torch.Tensor]) -> None:
        """Set `_vectors` (float64, on the CPU), all that `_map` needs.

        `mapped_mean` reads the text once and gives the mean of `_map` over it, with the vectors as they stand then.
        """

    @abstractmethod
    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        """Map unit rows [n, d], which may be overwritten, to unit rows; `keys` (uint64 [n]) come in training only."""

    def _vector(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A vector in the dtype and on the device of the rows it meets."""
        return self._vectors[name].to(like)

    @property
    def statistics(self) -> Statistics:
        """What the alignment was fitted on; ValueError if it is not fitted."""
        if self._statistics is None:
            raise ValueError(f"{type(self).__name__} is not fitted: call fit(text, image), or load_alignment(folder)")
        return self._statistics

    @property
    def dim(self) -> int:
        """Width d of the rows; ValueError if it is not fitted."""
        return self.statistics.text.dim

    @property
    def scale(self) -> float:
        """Factor on deviations from the text mean: one, unless the method says otherwise."""
        return 1.0

    def fit(self, text: Source, image: Source, *, measure_gap: bool = True, distributed: bool = False) -> Self:
        """Derive the map from the statistics of both sides; the rows need not be paired, normalised or equally many.

        Args:
            text: rows [n_text, d]: numpy array or memory map, torch tensor, embedding store, or an iterable of arrays
                that can be read again. Any float dtype; the arithmetic is float64.
            image: rows [n_image, d], likewise.
            measure_gap: read the text once more at the end, to know the centroid gap that is left.
            distributed: each process of the default `torch.distributed` group passes its own share of the rows, and all
                of them end with the same alignment.

        Returns:
            The alignment itself.

        Raises:
            ValueError: fewer than two rows on a side, different widths, a zero, NaN or infinite row (named by its
                number), or statistics that the method cannot use.
        """
        self._statistics = None

        def moments(source: Source, what: str, mapped: bool = False) -> Moments:
            rows = unit_blocks(source, what)
            state = measure((self._map(block, None, 0) for block in rows) if mapped else rows, what)
            return all_reduce(state) if distributed else state

        def mapped_mean() -> torch.Tensor:
            return moments(text, "text", mapped=True).mean

        of_text, of_image = moments(text, "text"), moments(image, "image")
        for what, side in (("text", of_text), ("image", of_image)):
            if side.count < 2:
                raise ValueError(f"{what} has {side.count} row; an alignment needs at least two on each side")
        if of_text.dim != of_image.dim:
            raise ValueError(f"text has {of_text.dim} columns but image {of_image.dim}: embed both with one encoder")
        self._solve(of_text, of_image, mapped_mean)
        gap_after = distance(mapped_mean(), of_image.mean) if measure_gap else None
        self._statistics = Statistics(of_text, of_image, _fingerprint(text), _fingerprint(image), gap_after)
        return self

    @overload
    def apply(self, rows: np.ndarray, *, row_ids: RowIds | None = None, epoch: int = 0) -> np.ndarray: ...
    @overload
    def apply(self, rows: torch.Tensor, *, row_ids: RowIds | None = None, epoch: int = 0) -> torch.Tensor: ...
    def apply(self, rows: Array, *, row_ids: RowIds | None = None, epoch: int = 0) -> Array:
        """Map text rows; each result depends on its own row alone (and, where noise is drawn, on its id and the epoch).

        Half-precision rows are worked on in float32, all others in float64, and rounded once at the end. No gradient
        flows through.

        Args:
            rows: [n, d] numpy array or torch tensor of any float dtype, on any device; left unchanged.
            row_ids: n integers or strings, given in training only: a method that adds noise draws it from
                (seed, epoch, row id), and adds none without ids.
            epoch: training epoch, from 0 on.

        Returns:
            Unit rows [n, d] of the same kind, dtype and device.

        Raises:
            ValueError: not fitted, wrong width, a zero, NaN or infinite row, or not exactly one id a row.
        """
        check_array(rows, "rows")
        if rows.shape[1] != self.dim:
            raise ValueError(f"rows have {rows.shape[1]} columns but the alignment was fitted on {self.dim}")
        keys = None if row_ids is None else row_keys(row_ids)
        if keys is not None and len(keys) != len(rows):
            raise ValueError(f"row_ids has {len(keys)} entries for {len(rows)} rows; give one id a row")
        result = np.empty(rows.shape, rows.dtype) if isinstance(rows, np.ndarray) else torch.empty_like(rows)
        target = torch.from_numpy(result) if isinstance(result, np.ndarray) else result
        working = torch.float32 if target.element_size() == 2 else torch.float64
        for start, block in blocks(rows, working):
            stop = start + len(block)
            unit = to_sphere(block, "text", start)
            target[start:stop] = self._map(unit, None if keys is None else keys[start:stop], epoch)
        return result

    def facts(self) -> dict[str, Any]:
        """What a person wants to know of a fitted alignment, as JSON values."""
        statistics = self.statistics
        sides = {
            name: {"count": side.count, "trace": side.trace, "fingerprint": fingerprint}
            for name, side, fingerprint in (
                ("text", statistics.text, statistics.text_fingerprint),
                ("image", statistics.image, statistics.image_fingerprint),
            )
        }
        gap = {"before": statistics.gap_before, "after": statistics.gap_after}
        return {
            "method": self.method,
            "parameters": self.parameters(),
            "dim": self.dim,
            **sides,
            "scale": self.scale,
            "centroid_gap": gap,
        }

    def save(self, path: Path) -> None:
        """Write `alignment.safetensors` and `alignment.json` into a folder, which is made if missing.

        Raises:
            ValueError: the alignment is not fitted.
        """
        tensors = dict(self._vectors)
        for name, side in (("text", self.statistics.text), ("image", self.statistics.image)):
            tensors[f"{name}.mean"] = side.mean
            tensors[f"{name}.scatter"] = torch.tensor(side.scatter, dtype=torch.float64)
        files.write(path, self.facts(), tensors)

    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Self:
        """Take over what `save` wrote; `load_alignment` is the way to call this."""
        text, image = (
            Moments(facts[name]["count"], tensors.pop(f"{name}.mean"), float(tensors.pop(f"{name}.scatter")))
            for name in ("text", "image")
        )
        self._vectors = tensors
        self._statistics = Statistics(
            text, image, facts["text"]["fingerprint"], facts["image"]["fingerprint"], facts["centroid_gap"]["after"]
        )
        return self


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Euclidean distance of two vectors."""
    return float(torch.linalg.vector_norm(a - b))


def row_keys(row_ids: RowIds) -> np.ndarray:
    """64-bit keys of row ids, uint64 [n]: integers as they are (modulo 2^64), strings by `hash_id`.

    Raises:
        ValueError: ids that are neither integers nor strings.
    """
    ids = row_ids.tolist() if isinstance(row_ids, np.ndarray | torch.Tensor) else list(row_ids)
    keys = np.empty(len(ids), dtype=np.uint64)
    for row, name in enumerate(ids):
        if isinstance(name, str):
            keys[row] = hash_id(name)
        elif isinstance(name, int | np.integer):
            keys[row] = int(name) % 2**64
        else:
            raise ValueError(f"row_ids[{row}] is a {type(name).__name__}; ids are integers or strings")
    return keys


def _fingerprint(source: Source) -> str | None:
    return source.fingerprint() if isinstance(source, Store) else None
