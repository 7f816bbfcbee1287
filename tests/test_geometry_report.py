"""The geometry report: the comparison of clouds, rows that no fit has seen, the tables, the figures, the page."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import cloud, make
from PIL import Image

from revision.alignment import ReAlign, Unicorn
from revision.geometry import measures, pairwise
from revision.geometry.domain_transfer import domain_transfer
from revision.geometry.frame import fit_frame
from revision.geometry.held_out import Domain
from revision.geometry.page import write_page
from revision.geometry.paired import compare_pairs
from revision.geometry.plots import _spread, draw_all
from revision.geometry.report import Comparison, compare, count_steps
from revision.geometry.sample_size import size_curve
from revision.geometry.table import tables


@pytest.fixture(scope="module")
def sides() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    text, image = cloud(120, shift=-0.2), cloud(120, 1, 0.4)
    return text, image, ReAlign(until=1e-9).fit(text, image).apply(text)


def test_the_comparison_holds_the_measures(sides: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    text, image, aligned = sides
    steps: list[str] = []
    found = compare(image, text, {"realign": aligned}, neighbours=[3, 5], seed=4, on_step=steps.append)
    assert len(steps) == count_steps(1)
    assert list(found.clouds) == ["image", "text", "realign"]
    raw, mapped = found.numbers["against_image"]["text"], found.numbers["against_image"]["realign"]
    assert raw["centroid_gap"] == pytest.approx(measures.centroid_gap(text, image)) and mapped["centroid_gap"] < 1e-9
    assert raw["trace_ratio"] == pytest.approx(measures.trace(image) / measures.trace(text))
    assert mapped["trace_ratio"] == pytest.approx(1, abs=1e-8)
    density = [pairwise.cosine_density(rows) for rows in (text, image)]
    assert raw["cosine_js_divergence"] == pytest.approx(pairwise.js_divergence(*density))
    assert mapped["cosine_js_divergence"] < raw["cosine_js_divergence"]
    sigmas = [measures.covariance(rows) for rows in (text, image)]
    apart = measures.covariance_distance(*sigmas)
    assert raw["covariance_distance"] == pytest.approx(apart)
    assert raw["covariance_distance_relative"] == pytest.approx(apart / np.linalg.norm(sigmas[1]))
    frechet = measures.frechet_distance(text.mean(axis=0), sigmas[0], image.mean(axis=0), sigmas[1])
    assert raw["frechet_distance"] == pytest.approx(frechet)
    assert mapped["knn_mixing_of_text"] == pairwise.knn_mixing_by_side(aligned, image, [3, 5])["text"]
    assert mapped["knn_mixing_of_image"] == pairwise.knn_mixing_by_side(aligned, image, [3, 5])["image"]
    assert mapped["knn_mixing"] == pairwise.knn_mixing(aligned, image, [3, 5])
    assert raw["probe_accuracy"] == measures.probe_accuracy(text, image, 4)
    assert found.numbers["neighbours_kept"] == {"realign": pairwise.neighbour_overlap(text, aligned, [3, 5])}
    spectrum = measures.spectrum(image)
    edges = [number / 100 - 1 for number in range(201)]
    assert found.numbers["clouds"]["image"] == {
        "rows": 120,
        "trace": pytest.approx(measures.trace(image), rel=1e-12),
        "mean_norm": pytest.approx(np.linalg.norm(image.mean(axis=0))),
        "power_law_exponent": pytest.approx(measures.power_law_exponent(spectrum), rel=1e-12),
        "power_law_ranks": [1, 6],
        "effective_rank": pytest.approx(measures.effective_rank(spectrum), rel=1e-12),
        "condition_number": pytest.approx(measures.condition_number(spectrum), rel=1e-12),
        "spectrum": pytest.approx(spectrum.tolist(), rel=1e-12),
        "cosine_density": {
            "edges": pytest.approx(edges),
            "values": [*density[1]],
        },
    }


@pytest.mark.parametrize("neighbours", [[], [0, 5]])
def test_numbers_of_neighbours_are_checked(
    neighbours: list[int], sides: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    text, image, aligned = sides
    with pytest.raises(ValueError, match="must be a list of numbers from 1 on"):
        compare(image, text, {"realign": aligned}, neighbours=neighbours)


def test_the_images_own_halves_are_as_close_as_samples_come(sides: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    text, image, aligned = sides
    found = compare(image, text, {"realign": aligned}, neighbours=[3, 70], seed=4).numbers
    order = np.random.default_rng(4).permutation(120)
    one, other = image[order[:60]], image[order[60:]]
    assert found["image_halves"]["centroid_gap"] == pytest.approx(measures.centroid_gap(one, other))
    assert found["image_halves"]["knn_mixing"] == pairwise.knn_mixing(one, other, [3, 70])
    assert found["image_halves"]["frechet_distance"] < found["against_image"]["text"]["frechet_distance"]
    assert compare(image[:7], text[:7], {}, neighbours=[3]).numbers["image_halves"] is None


def test_a_method_that_maps_images_is_held_against_those(sides: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    text, image, _ = sides
    unicorn = Unicorn().fit(text, image)
    mapped, moved = unicorn.apply(text), unicorn.apply_to_images(image)
    found = compare(image, text, {"unicorn": mapped}, moved_images={"unicorn": moved}, neighbours=[3]).numbers
    assert found["against_image"]["unicorn"]["centroid_gap"] == pytest.approx(measures.centroid_gap(mapped, moved))
    assert found["against_image"]["unicorn"]["knn_mixing"] == pairwise.knn_mixing(mapped, moved, [3])
    assert found["against_image"]["text"]["centroid_gap"] == pytest.approx(measures.centroid_gap(text, image))
    assert found["moved_images"] == ["unicorn"]


@pytest.mark.parametrize("aligned", [0, 2])
def test_steps_are_counted(aligned: int, sides: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    text, image, mapped = sides
    steps: list[str] = []
    compare(image, text, {str(number): mapped for number in range(aligned)}, neighbours=[3], on_step=steps.append)
    assert len(steps) == count_steps(aligned)


def report_of(found: Comparison, sides: tuple[np.ndarray, np.ndarray, np.ndarray], everything: bool) -> dict[str, Any]:
    """What `revision gap` writes, of two methods."""
    text, image, aligned = sides
    report: dict[str, Any] = {
        "encoder": "<tiny>",
        "sample": {"text": 120, "image": 120, "text_rows": 5000, "image_rows": 300, "seed": 7},
        "centroid_gap_all_rows": {"text": 0.7, "realign": 1.25e-4, "again": 2.5e-4},
        **found.numbers,
    }
    if everything:
        axes = fit_frame(image, text, 0.8)
        by_cloud = {"text": compare_pairs(text, image, axes), "realign": compare_pairs(aligned, image, axes)}
        by_cloud["again"] = by_cloud["realign"]
        subspace = {"energy": 0.8, "rank": axes.u.shape[1]}
        report["pairs"] = {
            "count": 120, "records": 130, "matched_by": "id", "subspace": subspace, "by_cloud": by_cloud,
        }  # fmt: skip
        domain = Domain(text, image)
        report["sample_size"] = size_curve(
            domain, make, ["realign", "needs_rows"], sizes=[20, 60], trials=2, held_out=40, seed=0
        )  # fmt: skip
        report["domain_transfer"] = domain_transfer(
            {"a/b": domain, "c/d": Domain(cloud(50, 4), image)}, make, ["realign", "needs_rows"],
            most=999, trials=2, seed=0,
        )  # fmt: skip
    return report


FIGURES = ["pca", "methods", "cosines", "spectra", "means"]
FURTHER = ["pairs", "sample_size", "domain_transfer"]


@pytest.mark.parametrize("as_read", [lambda report: report, lambda report: json.loads(json.dumps(report))])
@pytest.mark.parametrize("everything", [False, True])
def test_the_page_needs_nothing_else_and_holds_every_number(
    as_read: Callable[[Any], Any],
    everything: bool,
    sides: tuple[np.ndarray, np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    text, image, aligned = sides
    found = compare(image, text, {"realign": aligned, "again": aligned}, neighbours=[3])
    report = as_read(report_of(found, sides, everything))
    figures = draw_all(tmp_path, found.clouds, report)
    assert [path.stem for path in figures] == [*FIGURES, *(FURTHER if everything else [])]
    for path in figures:
        with Image.open(path) as picture:
            assert picture.width > 500 and picture.height > 300
            inked = np.asarray(picture.convert("L")) < 250
        assert 0.005 < inked.mean() < 0.7, path.stem
    assert sorted(tmp_path.iterdir()) == sorted(figures), "nothing is left aside"
    page = write_page("Gap of a & b", report, figures)
    assert "<title>Gap of a &amp; b</title>" in page and "&lt;tiny&gt;" in page
    assert "120 of 5,000 text rows and 120 of 300 image rows, drawn with seed 7" in page
    assert not re.search(r"https?:|<script|<link|@import|url\(|src=\"(?!data:)", page)
    assert page.count('src="data:image/png;base64,') == len(figures)
    shown = list(tables(report))
    assert [table.title for table in shown][1:] == (
        ["Pairs", "Sample size", "Domain transfer: realign", "Domain transfer: needs_rows"] if everything else []
    )
    assert page.count("<tr>") == len(shown) + sum(len(table.lines) for table in shown)
    for table in shown:
        for line in table.lines:
            assert len(line.values) == len(table.columns)
            for value in line.values:
                assert value is None or f"<td>{value:.4g}</td>" in page
    assert shown[0].lines[0].values == [0.7, 1.25e-4, 2.5e-4, None]
    if everything:
        assert "120 of 130 pairs, matched by id" in page and "2 trials" in page
        assert "needs_rows refused N = 20: the fit needs 30 rows, there are 20." in page
        assert "needs_rows refused half of c/d: the fit needs 30 rows, there are 25." in page


def test_tables_hold_the_numbers_of_the_report(sides: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    text, image, aligned = sides
    found = compare(image, text, {"realign": aligned, "again": aligned}, neighbours=[3])
    report = report_of(found, sides, everything=True)
    clouds, pairs, sizes, transfer, refusing = tables(report)
    by_name = {line.name: line.values for line in clouds.lines}
    against = report["against_image"]
    half = report["image_halves"]["frechet_distance"]
    frechet = [against[name]["frechet_distance"] for name in ("text", "realign", "again")]
    assert by_name["Fréchet distance"] == [*frechet, half]
    assert by_name["trace"][3] == pytest.approx(measures.trace(image))
    assert by_name["kNN mixing, k = 3"][0] == against["text"]["knn_mixing"][3]
    energies = [pairs.lines[[line.name for line in pairs.lines].index(name)].values[0] for name in ("‖β‖²", "E‖ζ‖²")]
    found_energies = report["pairs"]["by_cloud"]["text"]["decomposition"]["energy"]
    assert energies == [found_energies["beta"], found_energies["zeta"]]
    gaps = report["sample_size"]["methods"]["realign"]["centroid_gap"]
    assert [line.values[0] for line in sizes.lines] == [pytest.approx(np.mean(trials)) for trials in gaps]
    assert sizes.lines[0].values[1] is None and sizes.columns == ["realign", "needs_rows", "sampling alone"]
    matrix = report["domain_transfer"]["methods"]["realign"]["centroid_gap"]["mean"]
    assert [line.values for line in transfer.lines[1:3]] == matrix and transfer.columns == ["a/b", "c/d"]
    assert refusing.lines[2].values == [None, None] and None not in refusing.lines[1].values
    assert "refused" in refusing.note and "refused" not in transfer.note
    assert not any(math.isnan(value) for line in clouds.lines for value in line.values if value is not None)


def test_what_was_left_out_stands_on_the_page(sides: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    text, image, _ = sides
    found = compare(image, text, {}, neighbours=[3])
    report = report_of(found, sides, everything=False) | {"pairs_left_out": "0 of the 9 pairs have rows."}
    assert "0 of the 9 pairs have rows." in write_page("x", report, [])


def test_plotted_rows_lie_all_over_the_sample() -> None:
    """Samples are sorted by row: the first of them are one end of the store."""
    rows = np.arange(10_000.0)[:, None]
    shown = _spread(rows, 2000)[:, 0]
    assert len(shown) == 2000 and shown[0] == 0 and shown[-1] == 9999 and np.diff(shown).max() <= 6
    np.testing.assert_array_equal(_spread(rows[:7], 2000), rows[:7])
