"""Each geometry measure against a naive computation of its own, and the report that is made of them."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from revision.alignment import ReAlign
from revision.geometry import measures
from revision.geometry.page import write_page
from revision.geometry.plots import draw_all
from revision.geometry.report import compare, compare_pairs, count_steps, lines

DIM = 12


def cloud(count: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Anisotropic unit rows, float64 [count, DIM]."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, DIM)) * np.arange(1, DIM + 1) ** -0.5 + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a measure, the last one smaller."""
    monkeypatch.setattr(measures, "BLOCK", 1000)


def test_centroid_gap_and_its_floor() -> None:
    a, b = cloud(50), cloud(70, 1, 0.3)
    apart = sum((sum(a[:, j]) / 50 - sum(b[:, j]) / 70) ** 2 for j in range(DIM))
    assert measures.centroid_gap(a, b) == pytest.approx(math.sqrt(apart), rel=1e-12)
    gaps = [measures.centroid_gap(cloud(100, 2 * i), cloud(200, 2 * i + 1)) for i in range(300)]
    floor = measures.centroid_gap_floor(cloud(100, 0), cloud(200, 1))
    assert np.sqrt(np.mean(np.square(gaps))) == pytest.approx(floor, rel=0.1)


def test_trace_and_spectrum() -> None:
    rows = cloud(80, shift=0.2)
    mean = [math.fsum(rows[:, j]) / 80 for j in range(DIM)]
    trace = math.fsum((rows[i, j] - mean[j]) ** 2 for i in range(80) for j in range(DIM)) / 80
    assert measures.trace(rows) == pytest.approx(trace, rel=1e-12)
    assert measures.trace(rows) == pytest.approx(1 - np.linalg.norm(rows.mean(axis=0)) ** 2, rel=1e-12)
    singular = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(measures.spectrum(rows), singular**2 / 80, rtol=1e-9)
    assert measures.condition_number(measures.spectrum(rows)) == pytest.approx((singular[0] / singular[-1]) ** 2)


def test_spectrum_leaves_out_what_rank_makes_zero() -> None:
    assert len(measures.spectrum(cloud(6))) == 5
    flat = cloud(80)
    flat[:, 7:] = 0
    assert len(measures.spectrum(flat)) == 7


def test_rows_that_are_all_equal_have_no_spectrum() -> None:
    with pytest.raises(ValueError, match="the 9 rows are all equal"):
        measures.spectrum(np.tile(cloud(1), (9, 1)))


def test_effective_rank() -> None:
    assert measures.effective_rank(np.full(9, 0.3)) == pytest.approx(9)
    assert measures.effective_rank(np.array([1.0, 1e-9])) == pytest.approx(1, abs=1e-6)
    assert measures.effective_rank(np.array([3.0, 1.0])) == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize("alpha", [0.5, 1.83])
def test_power_law_exponent(alpha: float) -> None:
    eigenvalues = 2.5 * np.arange(1, 201) ** -alpha
    assert measures.power_law_exponent(eigenvalues) == pytest.approx(alpha, rel=1e-10)
    first, last = measures.power_law_range(eigenvalues)
    assert (first, last) == (4, 100)
    eigenvalues[: first - 1] *= 7
    eigenvalues[last:] /= 9
    assert measures.power_law_exponent(eigenvalues) == pytest.approx(alpha, rel=1e-10)


def test_two_eigenvalues_make_no_power_law() -> None:
    with pytest.raises(ValueError, match="at least 3 eigenvalues, there are 2"):
        measures.power_law_exponent(np.array([1.0, 0.5]))


def test_cosine_density() -> None:
    rows = cloud(90, shift=0.1)
    cosines = [float(rows[i] @ rows[j]) for i in range(90) for j in range(i + 1, 90)]
    expected, _ = np.histogram(cosines, bins=40, range=(-1, 1), density=True)
    np.testing.assert_allclose(measures.cosine_density(rows, bins=40), expected, rtol=1e-12)


def test_cosines_beyond_one_by_rounding_are_counted() -> None:
    rows = np.tile(np.array([[0.6, 0.8000001]], dtype=np.float32), (4, 1))
    density = measures.cosine_density(rows, bins=10)
    assert density[-1] == pytest.approx(5) and density[:-1].sum() == 0


def test_one_row_has_no_pair() -> None:
    with pytest.raises(ValueError, match="at least 2 rows, there are 1"):
        measures.cosine_density(cloud(1))


def test_js_divergence() -> None:
    p, q = np.array([1.0, 3.0, 0.0]), np.array([2.0, 0.0, 2.0])
    terms = [0.25 * math.log(0.25 / 0.375), 0.75 * math.log(0.75 / 0.375)]
    other = [0.5 * math.log(0.5 / 0.375), 0.5 * math.log(0.5 / 0.25)]
    assert measures.js_divergence(p, q) == pytest.approx((sum(terms) + sum(other)) / 2)
    assert measures.js_divergence(p, 7 * p) == 0
    assert measures.js_divergence(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(math.log(2))


def naive_neighbours(rows: np.ndarray, k: int) -> np.ndarray:
    distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)  # on the sphere the nearest is the most similar
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, :k]


@pytest.mark.parametrize("k", [1, 5, 89])
def test_neighbours(k: int) -> None:
    rows = cloud(90)
    np.testing.assert_array_equal(measures.neighbours(rows, k), naive_neighbours(rows, k))


@pytest.mark.parametrize("k", [0, 90])
def test_too_many_neighbours_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} neighbours cannot be found among 90 rows"):
        measures.neighbours(cloud(90), k)


def test_knn_mixing() -> None:
    text, image = cloud(60), cloud(50, 1, 0.15)
    found = naive_neighbours(np.concatenate([text, image]), 7)
    crossed = [sum((j >= 60) != (i >= 60) for j in found[i, :k]) / k for k in (3, 7) for i in range(110)]
    mixing = measures.knn_mixing(text, image, [3, 7])
    assert mixing == {3: pytest.approx(np.mean(crossed[:110])), 7: pytest.approx(np.mean(crossed[110:]))}
    assert 0 < mixing[3] < 0.45
    assert measures.knn_mixing(cloud(60, 0, -9), cloud(50, 1, 9), [3]) == {3: 0}


def test_perfect_mixing_is_what_one_cloud_gives() -> None:
    found = [measures.knn_mixing(cloud(60, 2 * i), cloud(30, 2 * i + 1), [5])[5] for i in range(40)]
    assert np.mean(found) == pytest.approx(measures.perfect_mixing(60, 30), abs=0.02)
    assert measures.perfect_mixing(2, 1) == pytest.approx(2 / 3)


def test_neighbour_overlap() -> None:
    before, after = cloud(70), cloud(70) + np.random.default_rng(5).normal(size=(70, DIM)) * 0.1
    after /= np.linalg.norm(after, axis=1, keepdims=True)
    old, new = naive_neighbours(before, 9), naive_neighbours(after, 9)
    overlap = measures.neighbour_overlap(before, after, [4, 9])
    for k in (4, 9):
        assert overlap[k] == pytest.approx(np.mean([len({*old[i, :k]} & {*new[i, :k]}) / k for i in range(70)]))
    assert 0.1 < overlap[4] < 0.95
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(DIM, DIM)))[0]
    assert measures.neighbour_overlap(before, before @ rotation, [9]) == {9: 1}


def test_probe_accuracy_is_that_of_least_squares() -> None:
    """Fisher's discriminant is proportional to the least-squares fit of the labels; here with the same halves."""
    a, b = cloud(301, shift=0.1), cloud(301, 1, 0.25)
    rng = np.random.default_rng(3)
    order_a, order_b = rng.permutation(301), rng.permutation(301)
    design = np.concatenate([a[order_a[:150]], b[order_b[:150]]])
    weights = np.linalg.lstsq(np.c_[design, np.ones(300)], np.repeat([1.0, -1.0], 150), rcond=None)[0]
    right = np.mean(np.c_[a[order_a[150:]], np.ones(151)] @ weights > 0) / 2
    right += np.mean(np.c_[b[order_b[150:]], np.ones(151)] @ weights <= 0) / 2
    assert 0.6 < right < 0.99
    assert measures.probe_accuracy(a, b, seed=3) == pytest.approx(right, abs=0.02)
    assert measures.probe_accuracy(cloud(301, 0, -9), cloud(301, 1, 9)) == 1
    chance = [measures.probe_accuracy(cloud(200, 2 * i), cloud(300, 2 * i + 1)) for i in range(30)]
    assert np.mean(chance) == pytest.approx(0.5, abs=0.03)


def test_a_probe_needs_rows() -> None:
    with pytest.raises(ValueError, match="at least 4 rows a side, there are 3 and 9"):
        measures.probe_accuracy(cloud(3), cloud(9))


def test_paired_measures() -> None:
    text = cloud(90)
    image = text + np.random.default_rng(5).normal(size=(90, DIM)) * 0.2
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    assert measures.paired_cosine(text, image) == pytest.approx(
        np.mean([t @ x for t, x in zip(text, image, strict=True)])
    )
    hits = [max(range(90), key=lambda j: float(text[i] @ image[j])) == i for i in range(90)]
    assert measures.retrieval_at_1(text, image) == pytest.approx(np.mean(hits))
    assert 0.1 < np.mean(hits) < 0.99
    found = compare_pairs(text, image)
    assert found["count"] == 90 and found["image_to_text_at_1"] == measures.retrieval_at_1(image, text)


def test_phantom_drift_matches_simulation() -> None:
    rng = np.random.default_rng(0)
    mean = np.array([1.2, 0.4, -0.3, 0.2])
    root = rng.normal(size=(4, 4)) * 0.03
    noise = rng.normal(size=(200_000, 4)) @ root.T
    rows = np.concatenate([mean + noise, mean - noise])  # in pairs, so that odd orders cancel
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    drift = measures.phantom_drift(mean, root @ root.T)
    found = unit.mean(axis=0) - mean / np.linalg.norm(mean)
    np.testing.assert_allclose(found, drift, rtol=0, atol=0.02 * float(np.linalg.norm(drift)))
    axis = mean / np.linalg.norm(mean)
    isotropic = measures.phantom_drift(mean, np.eye(4))
    np.testing.assert_allclose(isotropic, axis * (axis @ isotropic), atol=1e-15)  # no tangential part


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
    density = [measures.cosine_density(rows) for rows in (text, image)]
    assert raw["cosine_js_divergence"] == pytest.approx(measures.js_divergence(*density))
    assert mapped["cosine_js_divergence"] < raw["cosine_js_divergence"]
    assert mapped["knn_mixing"] == measures.knn_mixing(aligned, image, [3, 5])
    assert raw["probe_accuracy"] == measures.probe_accuracy(text, image, 4)
    assert found.numbers["neighbours_kept"] == {"realign": measures.neighbour_overlap(text, aligned, [3, 5])}
    spectrum = measures.spectrum(image)
    assert found.numbers["clouds"]["image"] == {
        "rows": 120,
        "trace": measures.trace(image),
        "mean_norm": pytest.approx(np.linalg.norm(image.mean(axis=0))),
        "power_law_exponent": measures.power_law_exponent(spectrum),
        "power_law_ranks": [1, 6],
        "effective_rank": measures.effective_rank(spectrum),
        "condition_number": measures.condition_number(spectrum),
    }


@pytest.mark.parametrize("neighbours", [[], [0, 5]])
def test_numbers_of_neighbours_are_checked(
    neighbours: list[int], sides: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    text, image, aligned = sides
    with pytest.raises(ValueError, match="must be a list of numbers from 1 on"):
        compare(image, text, {"realign": aligned}, neighbours=neighbours)


def report_of(numbers: dict[str, Any], **more: Any) -> dict[str, Any]:
    sample = {"text": 120, "image": 120, "text_rows": 5000, "image_rows": 300, "seed": 7}
    gaps = {"text": 0.7, "realign": 1.25e-4}
    return {"encoder": "<tiny>", "sample": sample, "centroid_gap_all_rows": gaps, **numbers, **more}


@pytest.mark.parametrize("as_read", [lambda report: report, lambda report: json.loads(json.dumps(report))])
def test_the_page_needs_nothing_else_and_holds_every_number(
    as_read: Callable[[Any], Any], sides: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    text, image, aligned = sides
    found = compare(image, text, {"realign": aligned}, neighbours=[3])
    figures = draw_all(tmp_path, found.clouds)
    pairs = {"text": compare_pairs(text, image), "realign": compare_pairs(aligned, image)}
    report = as_read(report_of(found.numbers, pairs=pairs))
    page = write_page("Gap of a & b", report, figures)
    assert "<title>Gap of a &amp; b</title>" in page and "&lt;tiny&gt;" in page
    assert "120 of 5,000 text rows and 120 of 300 image rows, drawn with seed 7" in page
    assert not re.search(r"https?:|<script|<link|@import|url\(|src=\"(?!data:)", page)
    assert page.count('src="data:image/png;base64,') == len(figures) == 4
    table = list(lines(report))
    assert page.count("<tr>") == 1 + len(table) == 15
    for line in table:
        assert f"<tr><td>{line.name}<small>" in page and len(line.values) == 3
        for value in line.values:
            assert value is None or f"<td>{value:.4g}</td>" in page
    assert table[0].values == [0.7, 1.25e-4, None]


def test_figures_are_pictures_with_something_on_them(
    sides: tuple[np.ndarray, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    text, image, aligned = sides
    clouds = compare(image, text, {"realign": aligned, "again": aligned}, neighbours=[3]).clouds
    for path in draw_all(tmp_path, clouds):
        with Image.open(path) as picture:
            assert picture.width > 800 and picture.height > 500
            inked = np.asarray(picture.convert("L")) < 250
        assert 0.005 < inked.mean() < 0.6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cosines.png", "means.png", "pca.png", "spectra.png"]
