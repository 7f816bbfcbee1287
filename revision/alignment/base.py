"""What every alignment shares: fitting on two sources, applying to rows, saving.

An alignment maps text embeddings towards the image distribution of the same dual encoder; image embeddings stay as
they are, so nothing changes when the model meets real pictures (ReVision v3, Sec. 4). A method is one subclass, which
says what vectors it derives from the statistics (`_solve`) and how it maps unit rows with them (`_map`). Its file in
`methods/` and a config of the same name are all that a new one takes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self, overload

import numpy as np
import torch

from revision.alignment import files
from revision.alignment.applying import Kernel, Stream, applied
from revision.alignment.chain import Chain
from revision.alignment.fitting import Fitting, refused_together
from revision.alignment.moments import Detail, Moments
from revision.alignment.noise import RowIds, row_keys
from revision.alignment.rows import Array, Source, Store
from revision.alignment.statistics import Statistics, distance
from revision.alignment.stores import opened_sides


class Alignment(ABC):
    """A map of text embeddings, fitted on unpaired text and image embeddings of one dual encoder.

    Class attributes:
        method: name in configurations and saved files.
        settings: names of the constructor's arguments, taken from there; each is also an attribute, and its values are
            JSON values.
        needs: detail of the moments of text and image that `_solve` reads.
        matches_trace: whether the map brings the trace of the text to that of the images.
        draws_noise: whether training, where rows have ids, adds noise.
        moves_images: whether images are mapped too, by `apply_to_images`, wherever the trained model meets them.
    """

    method: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[Detail, Detail]] = (Detail.TRACE, Detail.TRACE)
    matches_trace: ClassVar[bool] = False
    draws_noise: ClassVar[bool] = False
    moves_images: ClassVar[bool] = False

    def __init_subclass__(cls, **further: Any) -> None:
        super().__init_subclass__(**further)
        cls.settings = tuple(inspect.signature(cls).parameters)

    def __init__(self) -> None:
        self._statistics: Statistics | None = None
        self._vectors: dict[str, torch.Tensor] = {}
        self._kernel: Kernel | None = None
        self._converted: dict[tuple[str, torch.dtype, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    @abstractmethod
    def _solve(self, fitting: Fitting) -> None:
        """Set `_vectors` (float64, on the CPU, contiguous), all that `_map` needs."""

    @abstractmethod
    def _map(self, rows: torch.Tensor, keys: np.ndarray | None, epoch: int) -> torch.Tensor:
        """Map unit rows [n, d], which may be overwritten, to unit rows; `keys` (uint64 [n]) come in training only."""

    def _map_image(self, rows: torch.Tensor) -> torch.Tensor:
        """Map unit image rows [n, d], which may be overwritten, to unit rows: all methods but Unicorn leave them."""
        return rows

    def _chain(self) -> Chain | None:
        """What `_map` does where it adds no noise, if that is a chain of shifts: its mean then takes less time."""
        return None

    def _mapped_mean(self, fitting: Fitting) -> torch.Tensor:
        """Mean of the mapped text, float64 [d], no noise added: one pass."""
        mapping = partial(self._map, keys=None, epoch=0)
        chain = self._chain()
        return fitting.measure("text", mapping).mean if chain is None else fitting.mean_along(chain, "text", mapping)

    def _vector(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A vector in the dtype and on the device of the rows it meets; converted once, since a matrix is large."""
        vector = self._vectors[name]
        if vector.dtype == like.dtype and vector.device == like.device:
            return vector
        key = (name, like.dtype, like.device)
        if key not in self._converted or self._converted[key][0] is not vector:
            self._converted[key] = (vector, vector.to(like))
        return self._converted[key][1]

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
        """Root mean square factor on deviations from the text mean: sqrt(T_x / T_y), or one."""
        known = self.statistics
        return math.sqrt(known.image.trace / known.text.trace) if self.matches_trace else 1.0

    def parameters(self) -> dict[str, Any]:
        """Keyword arguments that make an unfitted copy of this alignment; JSON values."""
        return {name: vars(self)[name] for name in self.settings}

    def details(self) -> dict[str, float]:
        """Numbers of this method that a person wants to know after fitting, by name."""
        return {}

    def fit(
        self,
        text: Source | str | Path,
        image: Source | str | Path,
        *,
        measure_gap: bool = True,
        distributed: bool = False,
        skip_invalid: bool = False,
    ) -> Self:
        """Derive the map from the statistics of both sides; the rows need not be paired, normalised or equally many.

        Args:
            text: rows [n_text, d]: numpy array or memory map, torch tensor, embedding store, an iterable of arrays that
                can be read again, or the path of a store or of foreign embeddings (docs/formats.md). Any float dtype;
                the arithmetic is float64.
            image: rows [n_image, d], likewise.
            measure_gap: read the text once more at the end, to know the centroid gap that is left.
            distributed: each process of the default `torch.distributed` group passes its own share of the rows, and all
                of them end with the same alignment.
            skip_invalid: leave out zero, NaN and infinite rows and count them in `statistics`, instead of refusing
                them.

        Returns:
            The alignment itself.

        Raises:
            ValueError: fewer than two rows on a side, different widths, a zero, NaN or infinite row (named by its
                number), statistics that the method cannot use, a path that holds no such embeddings, or `distributed`
                without an initialised process group.
        """
        self._statistics = self._kernel = None
        self._converted = {}
        with refused_together(distributed):
            text, image = opened_sides(text, image)
        fitting = Fitting(text, image, self.needs, distributed=distributed, skip_invalid=skip_invalid)
        self._solve(fitting)
        gap_after = None
        if measure_gap:
            goal = fitting.measure("image", self._map_image) if self.moves_images else fitting.image
            gap_after = distance(self._mapped_mean(fitting), goal.mean)
        self._statistics = Statistics(
            fitting.text.without_detail(),
            fitting.image.without_detail(),
            _fingerprint(text),
            _fingerprint(image),
            gap_after,
            fitting.skipped["text"],
            fitting.skipped["image"],
        )
        return self

    @overload
    def apply(  # type: ignore[overload-overlap]
        self, rows: np.ndarray, *, row_ids: RowIds | None = None, epoch: int = 0
    ) -> np.ndarray: ...
    @overload
    def apply(self, rows: torch.Tensor, *, row_ids: RowIds | None = None, epoch: int = 0) -> torch.Tensor: ...
    @overload
    def apply(self, rows: Stream, *, row_ids: RowIds | None = None, epoch: int = 0) -> Iterator[Array]: ...
    def apply(self, rows: Array | Stream, *, row_ids: RowIds | None = None, epoch: int = 0) -> Array | Iterator[Array]:
        """Map text rows; each result depends on its own row alone (and, where noise is drawn, on its id and the epoch).

        Half-precision rows are worked on in float32, all others in float64, and rounded once at the end. No gradient
        flows through.

        Args:
            rows: [n, d] numpy array, memory map or torch tensor of any float dtype, on any device; or an embedding
                store or any iterable of such arrays, which are mapped one by one as the result is read. Left unchanged.
            row_ids: n integers or strings, given in training only: a method that adds noise draws it from
                (seed, epoch, row id), and adds none without ids. For several arrays, those of all of them in order.
            epoch: training epoch, from 0 on.

        Returns:
            Unit rows [n, d] of the same kind, dtype and device; for several arrays, an iterator over their results.

        Raises:
            ValueError: not fitted, wrong width, a zero, NaN or infinite row, a negative epoch, or not exactly one id a
                row. For several arrays, when the one it concerns is reached.
        """
        if not isinstance(epoch, int | np.integer) or not 0 <= epoch < 2**64:
            raise ValueError(f"epoch={epoch} must be a whole number from 0 on: epochs count from 0")
        keys = None if row_ids is None else row_keys(row_ids)

        def mapping(unit: torch.Tensor, of: np.ndarray | None) -> torch.Tensor:
            """The method's map at this epoch."""
            return self._map(unit, of, epoch)

        kernel = self._kernel if keys is None or not self.draws_noise else None
        return applied(rows, keys, "text", mapping, self.dim, kernel)

    def compile(self) -> Self:
        """Map rows of half precision on the CPU in machine code from now on, two to three times as fast; needs numba.

        The result still depends on its own row alone, but its sums are taken in another order: of the entries, a few in
        ten thousand differ by one unit in the last place from those before. It takes two seconds in each process. Rows
        of float32 and float64, rows on a GPU and training with noise go on as before. A new `fit` undoes it, and a
        saved alignment knows nothing of it.

        Returns:
            The alignment itself.

        Raises:
            ValueError: not fitted, a method that does more than shift rows and put them back on the sphere, or numba is
                not installed.
        """
        chain = self._chain() if self.statistics else None
        if chain is None:
            raise ValueError(
                f"{type(self).__name__} has no compiled form, since its map is no chain of shifts; use apply as it is"
            )
        if find_spec("numba") is None:
            raise ValueError("compile needs numba, which is not installed: pip install 'revision-mllm[compiled]'")
        self._kernel = import_module("revision.alignment.compiled").CompiledChain(chain)
        return self

    @overload
    def apply_to_images(self, rows: np.ndarray) -> np.ndarray: ...  # type: ignore[overload-overlap]
    @overload
    def apply_to_images(self, rows: torch.Tensor) -> torch.Tensor: ...
    @overload
    def apply_to_images(self, rows: Stream) -> Iterator[Array]: ...
    def apply_to_images(self, rows: Array | Stream) -> Array | Iterator[Array]:
        """Map image rows as this method wants them at inference: unit rows, left where they are by all but Unicorn.

        Takes, gives and raises what `apply` does.
        """
        return applied(rows, None, "image", lambda unit, _: self._map_image(unit), self.dim)

    def facts(self) -> dict[str, Any]:
        """What a person wants to know of a fitted alignment, as JSON values."""
        known = self.statistics
        sides = {
            name: {"count": side.count, "skipped": skipped, "trace": side.trace, "fingerprint": fingerprint}
            for name, side, skipped, fingerprint in (
                ("text", known.text, known.text_skipped, known.text_fingerprint),
                ("image", known.image, known.image_skipped, known.image_fingerprint),
            )
        }
        return {
            "method": self.method,
            "parameters": self.parameters(),
            "dim": self.dim,
            **sides,
            "scale": self.scale,
            "details": self.details(),
            "centroid_gap": {"before": known.gap_before, "after": known.gap_after},
        }

    def fingerprint(self) -> str:
        """sha256 that stands for the map: its method, parameters and vectors."""
        digest = hashlib.sha256(json.dumps([self.method, self.parameters()], sort_keys=True, default=str).encode())
        for name, vector in sorted(self._vectors.items()):
            digest.update(name.encode() + vector.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write `alignment.safetensors` and `alignment.json` into a folder, which is made if missing.

        Raises:
            ValueError: the alignment is not fitted.
        """
        tensors = {name: vector.clone() for name, vector in self._vectors.items()}  # safetensors takes no shared memory
        for name, side in (("text", self.statistics.text), ("image", self.statistics.image)):
            tensors[f"{name}.mean"] = side.mean
            tensors[f"{name}.scatter"] = torch.tensor(side.scatter, dtype=torch.float64)
        files.write(Path(path), self.facts(), tensors)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an alignment of this method that `save` wrote; `load_alignment` reads those of any method.

        Raises:
            ValueError: as `load_alignment`, or the folder holds an alignment of another method.
        """
        from revision.alignment.loading import load_alignment

        found = load_alignment(path)
        if not isinstance(found, cls):
            raise ValueError(
                f"{path} holds a {type(found).__name__}, not a {cls.__name__}; read it with load_alignment"
            )
        return found

    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Self:
        """Take over what `save` wrote; `load_alignment` is the way to call this."""
        text, image = (
            Moments(facts[name]["count"], tensors.pop(f"{name}.mean"), float(tensors.pop(f"{name}.scatter")))
            for name in ("text", "image")
        )
        self._vectors = tensors
        self._statistics = Statistics(
            text,
            image,
            facts["text"]["fingerprint"],
            facts["image"]["fingerprint"],
            facts["centroid_gap"]["after"],
            facts["text"].get("skipped", 0),  # absent from files written before rows could be skipped
            facts["image"].get("skipped", 0),
        )
        return self


def _fingerprint(source: Source) -> str | None:
    return source.fingerprint() if isinstance(source, Store) else None
