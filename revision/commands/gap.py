"""Measure the modality gap before and after alignment.

Compares a seeded sample of raw and of aligned text embeddings with image embeddings, and writes `report.json`, figures
as PNG, and one HTML page that holds both. Rows are aligned as training sees them: noise of the first epoch included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.schema import Config

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from revision.alignment import Alignment
    from revision.embeddings import EmbeddingStore


@dataclass(frozen=True)
class _Sides:
    """The stores that the alignment was fitted on, and the alignment."""

    text: EmbeddingStore
    image: EmbeddingStore
    alignment: Alignment


def run(config: Config) -> None:
    """Measures `gap.sample` rows a side and writes the report into the folder of the run."""
    import numpy as np
    from rich import get_console

    from revision import rundir
    from revision.geometry.page import write_page
    from revision.geometry.plots import draw_all
    from revision.geometry.report import compare, count_steps
    from revision.progress import progress_bar, say

    if not rundir.is_main_process():
        return
    sides = _open(config)
    method = sides.alignment.method
    folder = rundir.start(config, "gap")
    count = min(config.gap.sample, len(sides.text), len(sides.image))
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.choice(len(sides.text), count, replace=False))
    text, aligned = _texts(sides, chosen)
    image = _unit(sides.image, np.sort(rng.choice(len(sides.image), count, replace=False)))
    with progress_bar("steps") as progress:
        task = progress.add_task("geometry", total=count_steps(1))
        comparison = compare(
            image,
            text,
            {method: aligned},
            neighbours=config.gap.neighbours,
            seed=config.seed,
            on_step=lambda step: progress.update(task, advance=1, description=step),
        )
    gap = sides.alignment.statistics
    report: dict[str, Any] = {
        "encoder": sides.text.manifest.encoder["name"],
        "alignment": sides.alignment.facts(),
        "sample": {
            "text": count,
            "image": count,
            "text_rows": len(sides.text),
            "image_rows": len(sides.image),
            "seed": config.seed,
        },
        "centroid_gap_all_rows": {"text": gap.gap_before, method: gap.gap_after},
        **comparison.numbers,
        **_pairs(config, sides),
    }
    figures = draw_all(folder, comparison.clouds)
    rundir.write_json(folder / "report.json", report)
    rundir.write_text(folder / "report.html", write_page(f"Modality gap: {config.name}", report, figures))
    get_console().print(_table(report))
    say(f"with figures: {folder / 'report.html'}")
    rundir.finish(config, "gap", sample=count, **report["against_image"])


def _open(config: Config) -> _Sides:
    """The finished alignment, and the stores, which must be those that it was fitted on."""
    from revision import rundir
    from revision.alignment import load_alignment
    from revision.alignment.stores import open_sides

    alignment = load_alignment(rundir.require(config, "align", wanted_by="gap"))
    stores = Path(config.data.stores) / config.encoder.name
    text, image = open_sides(stores / config.data.texts, stores / config.data.statistics)
    fitted = (alignment.statistics.text_fingerprint, alignment.statistics.image_fingerprint)
    for store, fingerprint in zip((text, image), fitted, strict=True):
        if store.fingerprint() != fingerprint:
            raise ValueError(f"{store.path} has changed since the alignment was fitted; run `revision align` again")
    return _Sides(text, image, alignment)


def _unit(store: EmbeddingStore, rows: np.ndarray) -> np.ndarray:
    """Rows of a store as float32 unit vectors [n, d]."""
    import torch

    from revision.alignment.rows import to_sphere

    return to_sphere(torch.from_numpy(store.rows(rows)).float(), str(store.path)).numpy()


def _texts(sides: _Sides, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raw and aligned text rows, float32 [n, d]; the row number is the id that noise is drawn with, as in training."""
    raw = _unit(sides.text, rows)
    return raw, sides.alignment.apply(raw, row_ids=rows, epoch=0)


def _table(report: dict[str, Any]) -> Table:
    """The report's lines for the terminal."""
    from rich.table import Table

    from revision.geometry.report import lines

    table = Table(title=f"geometry of {report['sample']['text']:,} rows a side", title_justify="left")
    table.add_column("")
    for name in (*report["against_image"], "image"):
        table.add_column(name, justify="right")
    for line in lines(report):
        table.add_row(line.name, *("" if value is None else f"{value:.4g}" for value in line.values))
    return table


def _pairs(config: Config, sides: _Sides) -> dict[str, Any]:
    """Measures of up to `gap.sample` of `data.pairs`, of those whose id names a row of both stores; {} without any."""
    import numpy as np

    from revision.geometry.report import compare_pairs
    from revision.records import read_pairs

    if config.data.pairs is None:
        return {}
    paired = {pair.id for pair in read_pairs(Path(config.data.pairs))}
    ids = sorted(paired & set(sides.text.ids()) & set(sides.image.ids()))
    if len(ids) < 2:
        return {}
    chosen = np.random.default_rng(config.seed).permutation(len(ids))[: config.gap.sample]
    kept = [ids[number] for number in chosen]
    raw, aligned = _texts(sides, sides.text.index_of(kept))
    image = _unit(sides.image, sides.image.index_of(kept))
    return {"pairs": {"text": compare_pairs(raw, image), sides.alignment.method: compare_pairs(aligned, image)}}
