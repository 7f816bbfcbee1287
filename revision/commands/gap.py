"""Measure the modality gap before and after alignment.

Compares a seeded sample of raw and of aligned text embeddings with image embeddings, and writes `report.json`, figures
as PNG, and one HTML page that holds both. Rows are aligned as training sees them: noise of the first epoch included.
On request further alignments stand beside the run's own (`gap.compare`), and the report says how the gap depends on the
rows that an alignment was fitted on (`gap.sizes`) and on their domain (`gap.domains`), and shows how the gap came about
while `contrast` trained the encoder (`gap.trace`). docs/geometry.md explains all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from revision.fields import alignment_settings
from revision.schema import BadRows, Config

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from revision.alignment import Alignment
    from revision.embeddings import EmbeddingStore
    from revision.geometry.held_out import Domain
    from revision.geometry.pair_rows import PairRows

MOST_COLUMNS = 5  # of a table in a terminal: further ones come below
FEWEST_ROWS = 4  # a side, of which the measures make sense
FEWEST_PAIRS = 3
NEIGHBOURS = (10, 20)  # ReVision v3 has both
NONE = "none"  # the alignment that is the raw text, which is always measured


@dataclass(frozen=True)
class _Sides:
    """The stores that the alignment was fitted on, the alignment, and further stores that were asked for."""

    text: EmbeddingStore
    image: EmbeddingStore
    alignment: Alignment
    captions: EmbeddingStore
    domains: dict[str, Domain]


def run(config: Config) -> None:
    """Measures `gap.sample` rows a side and writes the report into the folder of the run."""
    import numpy as np

    from revision.geometry.held_out import moved_by, unit_rows
    from revision.geometry.page import write_page
    from revision.geometry.plots import draw_all
    from revision.geometry.report import compare
    from revision.progress import progress_bar, say
    from revision.runs import rundir

    if not rundir.is_main_process():
        return
    sides = _open(config)
    count = min(config.gap.sample, len(sides.text), len(sides.image))
    neighbours = _neighbours(config, count)
    pairs, trace = _find_pairs(config, sides), _trace(config)
    rng = np.random.default_rng(config.seed)
    chosen = np.sort(rng.choice(len(sides.text), count, replace=False))
    text = unit_rows(sides.text, chosen)
    image = unit_rows(sides.image, np.sort(rng.choice(len(sides.image), count, replace=False)))
    with progress_bar("steps") as progress:
        task = progress.add_task("geometry", total=_count_steps(config))

        def on_step(step: str) -> None:
            """Moves the bar."""
            progress.update(task, advance=1, description=step)

        alignments = _alignments(config, sides, on_step)
        aligned = {name: _align(alignments[name], text, chosen) for name in alignments}
        moved = {name: moved_by(alignment, image) for name, alignment in alignments.items()}
        comparison = compare(
            image, text, aligned, moved_images={name: rows for name, rows in moved.items() if rows is not None},
            neighbours=neighbours, seed=config.seed, on_step=on_step,
        )  # fmt: skip
        report: dict[str, Any] = {
            "encoder": sides.text.manifest.encoder["name"],
            "alignment": sides.alignment.facts(),
            "alignments": {name: alignment.parameters() for name, alignment in alignments.items()},
            "sample": {
                "text": count,
                "image": count,
                "text_rows": len(sides.text),
                "image_rows": len(sides.image),
                "seed": config.seed,
            },
            "centroid_gap_all_rows": {
                "text": sides.alignment.statistics.gap_before,
                **{name: alignment.statistics.gap_after for name, alignment in alignments.items()},
            },
            **comparison.numbers,
            **_pairs(config, sides, pairs, alignments, (text, image), on_step),
            **_held_out(config, sides, list(alignments), on_step),
            **trace,
        }
        on_step("figures")
        folder = rundir.start(config, "gap")  # only now: what is refused until here costs no finished report
        figures = draw_all(folder, comparison.clouds, report)
    rundir.write_json(folder / "report.json", report)
    rundir.write_text(folder / "report.html", write_page(f"Modality gap: {config.name}", report, figures))
    _show(report)
    say(f"with figures: {folder / 'report.html'}")
    rundir.finish(config, "gap", sample=count, **report["against_image"])


def _open(config: Config) -> _Sides:
    """The finished alignment, and the stores, which must be those that it was fitted on."""
    from revision import assembly
    from revision.alignment import load_alignment
    from revision.alignment.stores import open_sides
    from revision.assembly import store_path
    from revision.geometry.held_out import Domain
    from revision.geometry.sample_size import check_sizes
    from revision.runs import rundir

    alignment = load_alignment(rundir.require(config, "align", wanted_by="gap"))
    text, image = assembly.open_sides(config)
    fitted = (alignment.statistics.text_fingerprint, alignment.statistics.image_fingerprint)
    for store, fingerprint in zip((text, image), fitted, strict=True):
        if store.fingerprint() != fingerprint:
            raise ValueError(f"{store.path} has changed since the alignment was fitted; run `revision align` again")
    captions, _ = open_sides(store_path(config, config.gap.captions or config.data.texts), image.path)
    domains = {}
    for name in config.gap.domains:
        texts, pictures = (store_path(config, source) for source in name.split("/"))
        open_sides(texts, image.path)  # so that all domains are of one encoder, not only the two sides of each
        domains[name] = Domain(*open_sides(texts, pictures))
    if config.gap.sizes:
        check_sizes(Domain(text, image), sorted(config.gap.sizes), config.gap.held_out)
    return _Sides(text, image, alignment, captions, domains)


def _neighbours(config: Config, count: int) -> list[int]:
    """The numbers of neighbours to measure among `count` rows a side.

    Raises:
        ValueError: fewer rows than the measures need, or than the neighbours that the configuration asks for.
    """
    from revision.progress import say

    if count < FEWEST_ROWS:
        raise ValueError(
            f"`gap` measures {FEWEST_ROWS} rows a side or more, but {config.data.texts} or {config.data.statistics} "
            f"has {count}; embed more records"
        )
    asked = config.gap.neighbours
    if asked is None:
        found = [k for k in NEIGHBOURS if k < count] or [count - 1]
        if found != list(NEIGHBOURS):
            say(f"nearest neighbours: {', '.join(map(str, found))}, since there are {count} rows a side")
        return found
    if max(asked) >= count:
        raise ValueError(
            f"gap.neighbours = {asked}: must be below the {count} rows a side that are measured; lower them, raise "
            "gap.sample or embed more records"
        )
    return asked


def _methods(config: Config) -> list[str]:
    """The run's own alignment and those to compare it with; `none` is the raw text, which is always there."""
    methods = dict.fromkeys([config.alignment.method, *config.gap.compare])
    return [name for name in methods if name != NONE]


def _count_steps(config: Config) -> int:
    from revision.geometry.report import count_steps

    methods, gap = len(_methods(config)), config.gap
    fits = methods - (config.alignment.method != NONE)
    held_out = gap.trials * (len(set(gap.sizes)) + len(gap.domains))
    return fits + count_steps(methods) + (methods + 1) * (config.data.pairs is not None) + held_out + 1


def _make(config: Config, method: str) -> Alignment:
    """An unfitted alignment with those of the settings of `alignment` that it has."""
    from revision.alignment import build_alignment

    return build_alignment(method=method, **alignment_settings(config, method))


def _alignments(config: Config, sides: _Sides, on_step: Callable[[str], None]) -> dict[str, Alignment]:
    """The run's own alignment, as saved, and those of `gap.compare`, fitted on the same stores, by method."""
    found = {}
    for method in _methods(config):
        if method == sides.alignment.method:
            found[method] = sides.alignment
        else:
            on_step(f"{method}: fit")
            skip = config.align.bad_rows is BadRows.skip
            found[method] = _make(config, method).fit(sides.text, sides.image, skip_invalid=skip)
    return found


def _align(alignment: Alignment, text: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Aligned text rows, float32 [n, d]; the row number is the id that noise is drawn with, as in training."""
    return alignment.apply(text, row_ids=rows, epoch=0)


def _held_out(config: Config, sides: _Sides, methods: list[str], on_step: Callable[[str], None]) -> dict[str, Any]:
    """Sample-size curve and domain-transfer matrix, where they were asked for; without alignments, of `none`."""
    from revision.geometry.domain_transfer import domain_transfer
    from revision.geometry.held_out import Domain
    from revision.geometry.sample_size import size_curve

    gap, found = config.gap, {}
    methods = methods or [NONE]
    if gap.sizes:
        found["sample_size"] = size_curve(
            Domain(sides.text, sides.image), lambda name: _make(config, name), methods, sizes=gap.sizes,
            trials=gap.trials, held_out=gap.held_out, seed=config.seed, on_step=on_step,
        )  # fmt: skip
    if sides.domains:
        found["domain_transfer"] = domain_transfer(
            sides.domains, lambda name: _make(config, name), methods, most=gap.sample, trials=gap.trials,
            seed=config.seed, on_step=on_step,
        )  # fmt: skip
    return found


def _find_pairs(config: Config, sides: _Sides) -> tuple[PairRows, dict[str, Any]] | None:
    """Rows of `data.pairs`, and what the report says of them all; before anything is measured, since it may refuse."""
    from revision.geometry.pair_rows import find_pairs, what_lacks
    from revision.progress import say
    from revision.records import read_pairs

    if config.data.pairs is None:
        return None
    captions: dict[str, str] = {}
    repeated = 0
    for pair in read_pairs(Path(config.data.pairs)):
        repeated += pair.id in captions
        captions.setdefault(pair.id, pair.text)
    if repeated:
        say(f"pairs: {repeated:,} of {len(captions) + repeated:,} have the id of one before, and are left out")
    found = find_pairs(captions, sides.captions, sides.image)
    if len(found.text) >= FEWEST_PAIRS:
        return found, {"records": len(captions), "repeated_ids": repeated, "matched_by": found.matched_by}
    lacking = "; ".join(what_lacks(sides.captions, sides.image))
    why = f"too few to measure ({lacking})" if lacking else "too few to measure"
    remedy = "embed their captions as a text source and name it in gap.captions"
    if not sides.image.has_ids:
        remedy = "write a column of ids, such as image_path, beside the rows of the pictures"
    return found, {
        "pairs_left_out": f"{len(found.text)} of the {len(captions):,} pairs of {config.data.pairs} have a row in both "
        f"{sides.captions.path} and {sides.image.path}, {why}: {remedy}."
    }


def _pairs(
    config: Config, sides: _Sides, pairs: tuple[PairRows, dict[str, Any]] | None, alignments: dict[str, Alignment],
    sample: tuple[np.ndarray, np.ndarray], on_step: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Measures of up to `gap.sample` of the pairs that have a row in both stores, in the sample's frame."""
    import numpy as np

    from revision.geometry.frame import fit_frame
    from revision.geometry.held_out import unit_rows
    from revision.geometry.paired import compare_pairs

    if pairs is None:
        return {}
    found, said = pairs
    if "pairs_left_out" in said:
        return said
    on_step("text: pairs")
    chosen = np.random.default_rng(config.seed).permutation(len(found.text))[: config.gap.sample]
    text_rows = found.text[chosen]
    raw, image = unit_rows(sides.captions, text_rows), unit_rows(sides.image, found.image[chosen])
    axes = fit_frame(sample[1], sample[0], config.gap.energy)
    by_cloud = {"text": compare_pairs(raw, image, axes)}
    for name, alignment in alignments.items():
        on_step(f"{name}: pairs")
        by_cloud[name] = compare_pairs(_align(alignment, raw, text_rows), alignment.apply_to_images(image), axes)
    subspace = {"energy": config.gap.energy, "rank": axes.u.shape[1]}
    return {"pairs": {"count": len(chosen), **said, "subspace": subspace, "by_cloud": by_cloud}}


def _trace(config: Config) -> dict[str, Any]:
    """The lines of `gap.trace`, which the page draws, and where they were read."""
    from revision.geometry.frame_trace import TRACE, read_trace

    if config.gap.trace is None:
        return {}
    given = Path(config.gap.trace)
    file = given / TRACE if given.is_dir() else given
    try:
        return {"frame": {"file": str(file), "lines": read_trace(file)}}
    except ValueError as error:
        raise ValueError(f"gap.trace = {given}: {error}, or set gap.trace=null") from error


def _show(report: dict[str, Any]) -> None:
    """The report's tables in the terminal."""
    from rich import get_console
    from rich.table import Table

    from revision.geometry.table import tables
    from revision.progress import say

    for shown in tables(report):
        say(f"{shown.title}. {shown.note}")
        for first in range(0, len(shown.columns), MOST_COLUMNS):
            part = slice(first, first + MOST_COLUMNS)
            table = Table("")
            for name in shown.columns[part]:
                table.add_column(name, justify="right")
            for line in shown.lines:
                cells = ("" if value is None else f"{value:.4g}" for value in line.values[part])
                table.add_row(line.name, *cells)
            get_console().print(table)
    if "pairs_left_out" in report:
        say(report["pairs_left_out"])
