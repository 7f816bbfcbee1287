"""Measures that compare rows one by one, and measures of pairs, each against a naive float64 computation of its own."""

import math
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

from revision.geometry import paired, pairwise
from revision.geometry.frame import fit_frame

DIM = 12
needs_faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed (extra `faiss`)")


def cloud(count: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Anisotropic unit rows, float64 [count, DIM]."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, DIM)) * np.arange(1, DIM + 1) ** -0.5 + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks a measure, the last one smaller."""
    monkeypatch.setattr(pairwise, "BLOCK", 1000)


def test_cosine_density() -> None:
    rows = cloud(90, shift=0.1)
    cosines = [float(rows[i] @ rows[j]) for i in range(90) for j in range(i + 1, 90)]
    expected, _ = np.histogram(cosines, bins=40, range=(-1, 1), density=True)
    np.testing.assert_allclose(pairwise.cosine_density(rows, bins=40), expected, rtol=1e-12)


def test_cosines_beyond_one_by_rounding_are_counted() -> None:
    rows = np.tile(np.array([[0.6, 0.8000001]], dtype=np.float32), (4, 1))
    density = pairwise.cosine_density(rows, bins=10)
    assert density[-1] == pytest.approx(5) and density[:-1].sum() == 0


def test_one_row_has_no_pair() -> None:
    with pytest.raises(ValueError, match="at least 2 rows, there are 1"):
        pairwise.cosine_density(cloud(1))


def test_js_divergence() -> None:
    p, q = np.array([1.0, 3.0, 0.0]), np.array([2.0, 0.0, 2.0])
    terms = [0.25 * math.log(0.25 / 0.375), 0.75 * math.log(0.75 / 0.375)]
    other = [0.5 * math.log(0.5 / 0.375), 0.5 * math.log(0.5 / 0.25)]
    assert pairwise.js_divergence(p, q) == pytest.approx((sum(terms) + sum(other)) / 2)
    assert pairwise.js_divergence(p, 7 * p) == 0
    assert pairwise.js_divergence(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(math.log(2))


def naive_neighbours(rows: np.ndarray, k: int) -> np.ndarray:
    distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)  # on the sphere the nearest is the most similar
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1)[:, :k]


@pytest.mark.parametrize("k", [1, 5, 89])
def test_neighbours(k: int) -> None:
    rows = cloud(90)
    np.testing.assert_array_equal(pairwise.neighbours(rows, k), naive_neighbours(rows, k))


@pytest.mark.parametrize("k", [0, 90])
def test_too_many_neighbours_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} neighbours cannot be found among 90 rows"):
        pairwise.neighbours(cloud(90), k)


def test_knn_mixing() -> None:
    text, image = cloud(60), cloud(50, 1, 0.15)
    found = naive_neighbours(np.concatenate([text, image]), 7)
    crossed = [sum((j >= 60) != (i >= 60) for j in found[i, :k]) / k for k in (3, 7) for i in range(110)]
    mixing = pairwise.knn_mixing(text, image, [3, 7])
    assert mixing == {3: pytest.approx(np.mean(crossed[:110])), 7: pytest.approx(np.mean(crossed[110:]))}
    assert 0 < mixing[3] < 0.45
    assert pairwise.knn_mixing(cloud(60, 0, -9), cloud(50, 1, 9), [3]) == {3: 0}


def test_perfect_mixing_is_what_one_cloud_gives() -> None:
    found = [pairwise.knn_mixing(cloud(60, 2 * i), cloud(30, 2 * i + 1), [5])[5] for i in range(40)]
    assert np.mean(found) == pytest.approx(pairwise.perfect_mixing(60, 30), abs=0.02)
    assert pairwise.perfect_mixing(2, 1) == pytest.approx(2 / 3)


def test_neighbour_overlap() -> None:
    before, after = cloud(70), cloud(70) + np.random.default_rng(5).normal(size=(70, DIM)) * 0.1
    after /= np.linalg.norm(after, axis=1, keepdims=True)
    old, new = naive_neighbours(before, 9), naive_neighbours(after, 9)
    overlap = pairwise.neighbour_overlap(before, after, [4, 9])
    for k in (4, 9):
        assert overlap[k] == pytest.approx(np.mean([len({*old[i, :k]} & {*new[i, :k]}) / k for i in range(70)]))
    assert 0.1 < overlap[4] < 0.95
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(DIM, DIM)))[0]
    assert pairwise.neighbour_overlap(before, before @ rotation, [9]) == {9: 1}


@needs_faiss
def test_faiss_finds_the_same_neighbours() -> None:
    rows = cloud(300).astype(np.float32)
    assert pairwise.faiss_is_there()
    np.testing.assert_array_equal(pairwise.neighbours(rows, 7, faiss=True), pairwise.neighbours(rows, 7, faiss=False))
    np.testing.assert_array_equal(pairwise.neighbours(rows, 7), pairwise.neighbours(rows, 7, faiss=False))
    text, image = cloud(60).astype(np.float32), cloud(50, 1, 0.15).astype(np.float32)
    found = [pairwise.knn_mixing(text, image, [3, 7], faiss=faiss) for faiss in (True, False)]
    assert found[0] == found[1]


@needs_faiss
def test_faiss_leaves_a_row_out_of_its_own_neighbours_among_duplicates() -> None:
    rows = np.repeat(cloud(4), 10, axis=0).astype(np.float32)
    found = pairwise.neighbours(rows, 5, faiss=True)
    assert found.shape == (40, 5) and (found != np.arange(40)[:, None]).all()
    assert (found // 10 == np.arange(40)[:, None] // 10).all()  # all of them duplicates


def test_rows_off_the_sphere_are_refused() -> None:
    rows = cloud(9)
    half = rows.astype(np.float16)
    assert pairwise.neighbours(half, 2).shape == (9, 2)  # rounded, but of norm one
    for value, norm in ((2.0, "2"), (0.0, "0"), (np.nan, "nan")):
        spoiled = rows.copy()
        spoiled[3] *= value
        for measure in (pairwise.cosine_density, partial(pairwise.neighbours, k=2), partial(pairwise.retrieval, rows)):
            with pytest.raises(ValueError, match=f"row 3 has norm {norm}, .* divide each row by its norm first"):
                measure(spoiled)
    with pytest.raises(ValueError, match=r"shape \[9\]; rows must be \[n, d\]"):
        pairwise.cosine_density(rows[:, 0])
    narrow = np.eye(9, DIM - 1)
    with pytest.raises(ValueError, match=f"candidates has {DIM - 1} columns but queries {DIM}"):
        pairwise.retrieval(rows, narrow)
    with pytest.raises(ValueError, match="9 queries but 8 candidates: give pairs"):
        pairwise.retrieval(rows, rows[:8])
    with pytest.raises(ValueError, match="9 texts but 8 images: give pairs"):
        paired.compare_pairs(rows, rows[:8], fit_frame(rows, rows, 0.9))


@pytest.mark.parametrize("block", [1, 97, 10**6])
def test_block_size_and_row_order_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text, image = cloud(90), cloud(70, 1, 0.15)
    order = np.random.default_rng(1).permutation(90)

    def measured(text: np.ndarray, image: np.ndarray, mapped: np.ndarray) -> list[float]:
        return [
            *pairwise.cosine_density(text, bins=30),
            *pairwise.knn_mixing(text, image, [4, 8]).values(),
            *pairwise.neighbour_overlap(text, mapped, [4, 8]).values(),
            *pairwise.retrieval(text[:60], mapped[:60]).values(),
        ]

    mapped = text + np.random.default_rng(5).normal(size=(90, DIM)) * 0.1
    mapped /= np.linalg.norm(mapped, axis=1, keepdims=True)
    expected = measured(text, image, mapped)
    monkeypatch.setattr(pairwise, "BLOCK", block)
    np.testing.assert_allclose(measured(text, image, mapped), expected, rtol=1e-12)
    # Retrieval is asked of the first 60 rows, so these stay the first 60.
    order = np.r_[order[order < 60], order[order >= 60]]
    np.testing.assert_allclose(measured(text[order], image[::-1], mapped[order]), expected, rtol=1e-12)


def test_mixing_by_side_tells_a_wide_cloud_from_a_mixed_one() -> None:
    rng = np.random.default_rng(0)
    narrow = np.eye(400)[0] + rng.normal(size=(80, 400)) * 0.005
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    wide = np.eye(400)[0] + rng.normal(size=(80, 400)) * 0.1
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    found = pairwise.knn_mixing_by_side(wide, narrow, [5])
    assert found["text"][5] > 0.9 and found["image"][5] < 0.1
    assert found["all"] == pairwise.knn_mixing(wide, narrow, [5]) == {5: np.mean([found["text"][5], found["image"][5]])}
    unequal = pairwise.knn_mixing_by_side(wide[:40], narrow, [5])
    assert unequal["all"][5] == pytest.approx((40 * unequal["text"][5] + 80 * unequal["image"][5]) / 120)


def test_retrieval() -> None:
    text = cloud(90)
    image = text + np.random.default_rng(5).normal(size=(90, DIM)) * 0.2
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    ranks = [sorted(range(90), key=lambda j: -float(text[i] @ image[j])).index(i) + 1 for i in range(90)]
    found = pairwise.retrieval(text, image, (1, 5, 10, 200))
    assert found == {k: pytest.approx(np.mean([rank <= k for rank in ranks])) for k in (1, 5, 10, 200)}
    assert 0.1 < found[1] < found[5] < 0.99 and found[200] == 1


def test_retrieval_among_equal_candidates_is_chance() -> None:
    """A cloud that has collapsed finds nothing; two captions with the same words share the place that they hold."""
    image = cloud(40)
    collapsed = np.repeat(cloud(1), 40, axis=0)
    assert pairwise.retrieval(image, collapsed, (1, 10)) == {1: pytest.approx(1 / 40), 10: pytest.approx(0.25)}
    twice = np.repeat(cloud(20), 2, axis=0)
    assert pairwise.retrieval(twice, twice, (1, 2)) == {1: pytest.approx(0.5), 2: pytest.approx(1)}


def pairs(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Texts and images with a gap between them; row i of one belongs to row i of the other."""
    text = cloud(count, shift=-0.2)
    image = text + 0.3 + np.random.default_rng(5).normal(size=(count, DIM)) * 0.2
    return text, image / np.linalg.norm(image, axis=1, keepdims=True)


def test_measures_of_pairs() -> None:
    text, image = pairs()
    found = paired.compare_pairs(text, image, fit_frame(image, text, 0.8))
    cosines = np.array([[float(t @ x) for x in image] for t in text])
    assert found["cosine"] == pytest.approx(np.mean(np.diag(cosines)))
    assert found["cosine_std"] == pytest.approx(np.std(np.diag(cosines)))
    assert found["unpaired_cosine"] == pytest.approx((cosines.sum() - np.trace(cosines)) / (90 * 89))
    assert found["text_to_image"] == pairwise.retrieval(text, image)
    assert found["image_to_text"] == pairwise.retrieval(image, text)


def test_the_gap_of_pairs_splits_into_four_parts() -> None:
    text, image = pairs()
    found = paired.split_gap(text, image, fit_frame(image, text, 0.8))
    values, vectors = np.linalg.eigh(np.cov(image.T, bias=True) + np.cov(text.T, bias=True))
    rank = next(r for r in range(1, DIM) if values[DIM - r :].sum() >= 0.8 * values.sum())
    assert found["rank"] == rank and 1 < rank < DIM - 1
    onto_u = vectors[:, DIM - rank :] @ vectors[:, DIM - rank :].T
    gap = image - text
    mean = gap.mean(axis=0)
    beta, gamma = onto_u @ mean, mean - onto_u @ mean
    delta = (gap - mean) @ onto_u
    zeta = gap - mean - delta
    assert found["beta_norm"] == pytest.approx(np.linalg.norm(beta))
    assert found["gamma_norm"] == pytest.approx(np.linalg.norm(gamma))
    assert found["delta_rms"] == pytest.approx(np.sqrt((delta**2).sum() / 90))
    assert found["zeta_rms"] == pytest.approx(np.sqrt((zeta**2).sum() / 90))
    for name, rows, part, kept in (("delta", delta, beta, rank), ("zeta", zeta, gamma, DIM - rank)):
        spread, axes = np.linalg.eigh(np.cov(rows.T, bias=True))
        spread = spread[::-1][:kept]
        assert found[f"{name}_condition_number"] == pytest.approx(spread[0] / spread[-1])
        shares = spread / spread.sum()
        assert found[f"{name}_effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
        angle = math.degrees(math.acos(abs(part @ axes[:, -1]) / np.linalg.norm(part)))
        assert found["beta_to_delta_angle" if name == "delta" else "gamma_to_zeta_angle"] == pytest.approx(angle)
    assert found["mean_to_U_angle"] == pytest.approx(
        math.degrees(math.asin(np.linalg.norm(gamma) / np.linalg.norm(mean)))
    )


def test_the_four_parts_add_up() -> None:
    text, image = pairs()
    parts = paired.split_gap(text, image, fit_frame(image, text, 0.6))["energy"]
    assert sum(parts.values()) == pytest.approx(((image - text) ** 2).sum() / 90, rel=1e-12)
    # On the sphere that is 2 - 2 cos.
    assert sum(parts.values()) == pytest.approx(2 - 2 * paired.paired_cosines(text, image).mean(), rel=1e-12)


def test_a_gap_that_is_all_mean_has_no_residuals() -> None:
    text, image = np.repeat(cloud(1), 5, axis=0), np.repeat(cloud(1, 3), 5, axis=0)
    found = paired.split_gap(text, image, fit_frame(cloud(50), cloud(50, 1), 0.8))
    assert found["delta_rms"] == pytest.approx(0, abs=1e-12) and found["mean_norm"] > 0.1
    assert found["delta_effective_rank"] is None and found["zeta_effective_rank"] is None


def test_two_pairs_are_too_few() -> None:
    text, image = pairs()
    with pytest.raises(ValueError, match="at least 3 pairs, there are 2"):
        paired.compare_pairs(text[:2], image[:2], fit_frame(image, text, 0.8))
