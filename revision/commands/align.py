"""Fit the map from text embeddings to the image distribution.

Reads the stores of `data.texts` and `data.statistics`, which need not be paired, and writes the few vectors that
training applies to every text embedding. The stores stay raw, so that another alignment costs no second copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from revision.fields import alignment_settings
from revision.schema import BadRows, Config

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress
    from rich.table import Table

    from revision.alignment import Alignment
    from revision.embeddings import EmbeddingStore


def run(config: Config) -> None:
    """Fits `alignment.method` and saves it in the folder of the run."""
    from rich import get_console

    from revision.alignment import build_alignment
    from revision.assembly import open_sides
    from revision.progress import progress_bar
    from revision.runs import rundir

    if not rundir.is_main_process():  # minutes of work at the very most: no share of it is worth a second process
        return
    text, image = open_sides(config)
    method = config.alignment.method
    alignment = build_alignment(method=method, **alignment_settings(config, method))
    with progress_bar("rows") as progress:
        sides = (_Watched(text, "text", progress), _Watched(image, "image", progress))
        alignment.fit(*sides, skip_invalid=config.align.bad_rows is BadRows.skip)
    folder = rundir.start(config, "align")  # only now: rows or settings that a method refuses cost no finished run
    alignment.save(folder)
    if config.align.export is not None:
        _export(config, alignment, text)
    get_console().print(_table(alignment))
    rundir.finish(config, "align", **alignment.facts())


def _export(config: Config, alignment: Alignment, text: EmbeddingStore) -> None:
    """Writes the aligned text rows as plain files, as training sees them in its first epoch."""
    from pathlib import Path

    from revision.embeddings.export import export_rows
    from revision.progress import progress_bar, say

    assert config.align.export is not None
    folder = Path(config.align.export)
    facts = alignment.facts()
    described = {name: facts[name] for name in ("method", "parameters")}
    described |= {name: facts[name]["fingerprint"] for name in ("text", "image")}
    with progress_bar("rows") as progress:
        task = progress.add_task("export", total=len(text))
        export_rows(
            text,
            folder,
            transform=lambda rows, numbers: alignment.apply(rows, row_ids=numbers, epoch=0),
            described=described,
            shard_size=config.align.shard_size,
            on_rows=lambda count: progress.advance(task, count),
        )
    say(f"aligned rows: {folder}")


class _Watched:
    """A store whose reading moves a progress bar; each pass over it starts a bar of its own."""

    def __init__(self, store: EmbeddingStore, name: str, progress: Progress) -> None:
        self._store, self._name, self._progress = store, name, progress
        self._task = progress.add_task(name, total=len(store), visible=False)
        self._passes = 0

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """The rows of the store, each pass under a bar of its own."""
        self._passes += 1
        self._progress.reset(self._task, visible=True, description=f"{self._name}, pass {self._passes}")
        for chunk in self._store.chunks(size):
            yield chunk
            self._progress.advance(self._task, len(chunk))

    def fingerprint(self) -> str:
        """That of the store."""
        return self._store.fingerprint()


def _table(alignment: Alignment) -> Table:
    """The numbers that say whether the fit is sound."""
    from rich.table import Table

    statistics = alignment.statistics
    table = Table(title=f"alignment: {alignment.method}", title_justify="left")
    table.add_column("")
    for name in ("text", "image"):
        table.add_column(name, justify="right")
    table.add_row("rows", f"{statistics.text.count:,}", f"{statistics.image.count:,}")
    if statistics.text_skipped or statistics.image_skipped:
        table.add_row("left out", f"{statistics.text_skipped:,}", f"{statistics.image_skipped:,}")
    table.add_row("trace", f"{statistics.text.trace:.4f}", f"{statistics.image.trace:.4f}", end_section=True)
    table.add_row("centroid gap before", f"{statistics.gap_before:.3e}", "")
    table.add_row("centroid gap after", f"{statistics.gap_after:.3e}", "")
    table.add_row("scale", f"{alignment.scale:.4f}", "")
    for name, value in alignment.details().items():
        table.add_row(name.replace("_", " "), f"{value:.4g}", "")
    return table
