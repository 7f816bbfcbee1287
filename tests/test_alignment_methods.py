"""Each alignment against few lines of float64 numpy, its limits, and what it refuses."""

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from clouds import METHODS, built
from test_alignment import DIM, gap, plain_realign, trace, two_sides, unit

from revision.alignment import (
    Alignment,
    Blockwise,
    Diagonal,
    GaussianOT,
    MeanShift,
    NoAlignment,
    Quantile,
    ReAlign,
    ResidualNoise,
    ShrunkOT,
    Unicorn,
    build_alignment,
)
from revision.alignment.noise import gaussian_rows
from revision.alignment.quantiles import RELATIVE_ERROR, RadiusSketch, transfer

Plain = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def cov(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.cov(rows.T, bias=True))


def root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a positive matrix by the iteration of Denman and Beavers: no eigenvectors."""
    y, z = matrix, np.eye(len(matrix))
    for _ in range(60):
        y, z = (y + np.linalg.inv(z)) / 2, (z + np.linalg.inv(y)) / 2
    return y


def plain_frame(text: np.ndarray, image: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    left = np.linalg.svd(cov(text) + cov(image))[0]
    return left[:, :rank], left[:, rank:]


def with_centroid(move: Plain, steps: int = 1) -> Plain:
    """A map and then the centroid step, fitted on the text and applied to any rows."""

    def plain(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
        rows, text = move(rows, text, image), move(text, text, image)
        for _ in range(steps):
            shift = image.mean(axis=0) - text.mean(axis=0)
            rows, text = unit(rows + shift), unit(text + shift)
        return rows

    return plain


def plain_unicorn(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    return unit(rows - text.mean(axis=0))


def plain_diagonal(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    return unit((rows - text.mean(axis=0)) / text.std(axis=0) * image.std(axis=0) + image.mean(axis=0))


def plain_blockwise(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Rank 10, no ridge."""
    shifted = unit(rows - text.mean(axis=0) + image.mean(axis=0))
    found = np.zeros_like(rows)
    for basis in plain_frame(text, image, 10):
        whiten = np.linalg.inv(root(basis.T @ cov(text) @ basis))
        found += shifted @ basis @ (root(basis.T @ cov(image) @ basis) @ whiten).T @ basis.T
    return unit(found)


def plain_ot(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(root(source))
    return np.asarray(inverse @ root(root(source) @ target @ root(source)) @ inverse)


def plain_gaussian(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    return unit((rows - text.mean(axis=0)) @ plain_ot(cov(text), cov(image)) + image.mean(axis=0))


def plain_shrunk(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Shrinkage 0.3, rank 10, no ridge."""
    target = 0.7 * cov(image) + 0.3 * trace(image) / trace(text) * cov(text)
    inside, outside = plain_frame(text, image, 10)
    ratio = np.trace(outside.T @ target @ outside) / np.trace(outside.T @ cov(text) @ outside)
    core = plain_ot(inside.T @ cov(text) @ inside, inside.T @ target @ inside)
    matrix = inside @ core @ inside.T + np.sqrt(ratio) * outside @ outside.T
    return unit((rows - text.mean(axis=0)) @ matrix + image.mean(axis=0))


def plain_no_anchor(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    middle = text.mean(axis=0)
    return unit(middle + np.sqrt(trace(image) / trace(text)) * (rows - middle))


def plain_anchor(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    return unit(rows - text.mean(axis=0) + image.mean(axis=0))


def plain_nothing(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    return rows


FORMULAS: dict[str, tuple[Alignment, Plain]] = {
    "unicorn": (Unicorn(), plain_unicorn),
    "diagonal": (Diagonal(), plain_diagonal),
    "blockwise 0": (Blockwise(rank=10, ridge=0, centroid_steps=0), plain_blockwise),
    "blockwise": (Blockwise(rank=10, ridge=0), with_centroid(plain_blockwise)),
    "gaussian_ot 0": (GaussianOT(ridge=0, centroid_steps=0), plain_gaussian),
    "gaussian_ot": (GaussianOT(ridge=0, centroid_steps=2), with_centroid(plain_gaussian, 2)),
    "shrunk_ot": (ShrunkOT(shrinkage=0.3, rank=10, ridge=0), with_centroid(plain_shrunk)),
    "residual_noise without ids": (ResidualNoise(), plain_realign),
    "realign, no anchor": (ReAlign(anchor=False), with_centroid(plain_no_anchor)),
    "realign, no trace": (ReAlign(trace=False), with_centroid(plain_anchor)),
    "realign, anchor alone": (ReAlign(trace=False, centroid_steps=0), plain_anchor),
    "realign, trace alone": (ReAlign(anchor=False, centroid_steps=0), plain_no_anchor),
    "realign, centroid alone": (ReAlign(anchor=False, trace=False), with_centroid(plain_nothing)),
    "realign, nothing": (ReAlign(anchor=False, trace=False, centroid_steps=0), plain_nothing),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_method_is_its_formula(case: str) -> None:
    alignment, plain = FORMULAS[case]
    text, image = two_sides()
    others = two_sides(seed=1)[0]
    alignment.fit(3 * text, image)
    np.testing.assert_allclose(alignment.apply(others), plain(others, text, image), rtol=0, atol=1e-11)
    goal = plain_unicorn(image, image, image) if case == "unicorn" else image
    assert alignment.statistics.gap_after == pytest.approx(gap(plain(text, text, image), goal), rel=1e-6, abs=1e-13)


def test_realign_with_nothing_but_the_anchor_is_the_mean_shift() -> None:
    text, image = two_sides()
    bare = ReAlign(trace=False, centroid_steps=0).fit(text, image)
    np.testing.assert_allclose(bare.apply(text), MeanShift().fit(text, image).apply(text), rtol=0, atol=1e-15)
    assert bare.scale == 1
    same = np.tile([[0.6, 0.8]], (5, 1))
    ReAlign(trace=False).fit(same, two_sides()[0][:, :2])  # no scale is needed, so no spread either


def test_transport_is_the_symmetric_positive_map_between_the_covariances() -> None:
    text, image = two_sides()
    alignment = GaussianOT(ridge=0, centroid_steps=0).fit(text, image)
    matrix = alignment._vectors["matrix"].numpy()
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=0)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    np.testing.assert_allclose(matrix @ cov(text) @ matrix, cov(image), rtol=0, atol=1e-13)


def test_both_ends_of_the_shrinkage() -> None:
    text, image = two_sides()
    for rank in (4, DIM):
        found = ShrunkOT(shrinkage=1, rank=rank).fit(text, image).apply(text)
        np.testing.assert_allclose(found, ReAlign().fit(text, image).apply(text), rtol=0, atol=1e-12)
    found = ShrunkOT(shrinkage=0, energy=1.0).fit(text, image).apply(text)
    np.testing.assert_allclose(found, GaussianOT().fit(text, image).apply(text), rtol=0, atol=1e-11)


def test_a_large_ridge_is_realign() -> None:
    text, image = two_sides()
    reference = ReAlign().fit(text, image).apply(text)
    for alignment in (GaussianOT(ridge=1e9), ShrunkOT(ridge=1e9, shrinkage=0)):
        np.testing.assert_allclose(alignment.fit(text, image).apply(text), reference, rtol=0, atol=1e-7)


def test_the_estimated_shrinkage_is_the_ratio_of_its_two_errors() -> None:
    text, image = two_sides()
    alignment = ShrunkOT(rank=10).fit(text, image)
    inside = plain_frame(text, image, 10)[0]
    rows = (image - image.mean(axis=0)) @ inside
    sample = cov(rows)
    error = np.mean([np.sum((np.outer(row, row) - sample) ** 2) for row in rows]) / len(rows)
    target = trace(image) / trace(text) * inside.T @ cov(text) @ inside
    expected = error / np.sum((sample - target) ** 2)
    assert alignment.details()["shrinkage"] == pytest.approx(expected, rel=1e-9)
    assert 0 < expected < 0.2
    few = ShrunkOT(rank=10).fit(text, image[:8]).details()["shrinkage"]
    assert few > 3 * expected


def test_shrinkage_helps_where_images_are_few() -> None:
    """With 40 images, the shrunk target is nearer to the true image covariance than the sample itself."""
    text, image = two_sides(4000, 20000)
    text = unit(text @ np.diag(np.linspace(0.8, 1.2, DIM)))
    truth = cov(image)
    ratio = trace(image[:40]) / trace(text)
    shrinkage = ShrunkOT(energy=1.0).fit(text, image[:40]).details()["shrinkage"]
    shrunk = (1 - shrinkage) * cov(image[:40]) + shrinkage * ratio * cov(text)
    assert np.linalg.norm(shrunk - truth) < np.linalg.norm(cov(image[:40]) - truth)


@pytest.mark.parametrize("method", ["blockwise", "quantile", "shrunk_ot", "gaussian_ot", "diagonal"])
def test_anisotropic_methods_bring_the_covariance_nearer(method: str) -> None:
    text, image = two_sides(4000, 3000)

    def apart(name: str) -> float:
        return float(np.linalg.norm(cov(build_alignment(method=name).fit(text, image).apply(text)) - cov(image)))

    assert apart(method) < 0.8 * apart("realign")


@pytest.mark.parametrize("method", ["realign", "blockwise", "quantile", "gaussian_ot", "shrunk_ot", "residual_noise"])
@pytest.mark.parametrize("until", [1e-7, 1e-12])
def test_until_is_reached(method: str, until: float) -> None:
    text, image = two_sides()
    alignment = build_alignment(method=method, until=until).fit(text, image)
    assert gap(alignment.apply(text), image) < until
    assert len(alignment._vectors["corrections"]) < 10


@pytest.mark.parametrize("width", [0.3, 0.03, 0.003])
def test_until_takes_few_steps_in_a_narrow_cloud_too(width: float) -> None:
    """Plain steps would leave ||mu_x||^2 of the gap each: 1 - 1e-5 in the narrowest."""
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(500, DIM)) * np.linspace(1.5, 0.2, DIM) + rng.normal(size=DIM))
    image = unit(rng.normal(size=(400, DIM)) * width / np.sqrt(DIM) + unit(rng.normal(size=(1, DIM))))
    alignment = ReAlign(until=1e-7).fit(text, image)
    assert gap(alignment.apply(text), image) < 1e-7
    assert len(alignment._vectors["corrections"]) < 12


@pytest.mark.parametrize("width", [0.03, 0.003])
def test_a_gap_that_shrinks_too_slowly_is_refused(width: float) -> None:
    """Blockwise tilts a narrow cloud so far that plain steps, each smaller than the last, would take thousands."""
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(500, DIM)) * np.linspace(1.5, 0.2, DIM) + rng.normal(size=DIM))
    image = unit(rng.normal(size=(400, DIM)) * width / np.sqrt(DIM) + unit(rng.normal(size=(1, DIM))))
    with pytest.raises(ValueError) as caught:
        Blockwise(until=1e-7).fit(text, image)
    found = re.fullmatch(
        r"until=1e-07 is out of reach: the gap is still (\S+) after 100 steps; raise until, or choose another "
        r"alignment",
        str(caught.value),
    )
    assert found is not None and 1e-3 < float(found[1]) < 1e-1
    for method in ("realign", "quantile", "gaussian_ot", "shrunk_ot", "residual_noise"):
        alignment = build_alignment(method=method, until=1e-7).fit(text, image)
        assert gap(alignment.apply(text), image) < 1e-7
        assert len(alignment._vectors["corrections"]) < 12


# Quantiles


@pytest.mark.parametrize("residue", [0.0, 1e-9])
def test_a_plane_of_the_leading_subspace_without_text_is_refused(residue: float) -> None:
    """There the radius of a text is rounding, and matching it would turn rounding into an image."""
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(50, 6)), rng.normal(size=(60, 6)) + np.array([0, 0, 1, 1, 1, 1])
    text[:, :2] *= residue
    image[:, :2] *= 20
    # With every sign of the first two columns there, these are eigenvectors, and the widest: one plane.
    image = np.concatenate([image * [*signs, 1, 1, 1, 1] for signs in product((1, -1), repeat=2)])
    with pytest.raises(ValueError) as caught:
        Quantile(rank=6).fit(text, image)
    assert str(caught.value) == (
        "the text rows have no variance in a plane of U, so Quantile finds no scale for it: lower rank or energy, or "
        "fit on more rows than columns"
    )


def test_a_plane_without_texts_and_images_does_no_harm() -> None:
    rng = np.random.default_rng(0)
    text, image = rng.normal(size=(50, 6)), rng.normal(size=(60, 6)) + 1
    text[:, :2] = image[:, :2] = 0
    near = np.array([1e-12, 1e-12, 0, 0, 0, 0])
    alignment = Quantile(rank=6).fit(text, image)
    np.testing.assert_allclose(alignment.apply(text + near), alignment.apply(text), rtol=0, atol=1e-9)


def test_equally_many_radii_are_matched_rank_by_rank() -> None:
    """With as many texts as images, F_x^-1(F_y(rho)) gives the i-th smallest radius of the images to the i-th text."""
    text, image = two_sides(500, 500)
    alignment = Quantile(rank=6, ridge=0, centroid_steps=0).fit(text, image)
    basis = np.concatenate(plain_frame(text, image, 6), axis=1)
    of_text, of_image = (text - text.mean(axis=0)) @ basis, (image - image.mean(axis=0)) @ basis
    expected = of_text * (of_image.std(axis=0) / of_text.std(axis=0))
    for first in (0, 2, 4):
        plane = slice(first, first + 2)
        radii = np.linalg.norm(of_text[:, plane], axis=1)
        wanted = np.empty(500)
        wanted[np.argsort(radii)] = np.sort(np.linalg.norm(of_image[:, plane], axis=1))
        expected[:, plane] = of_text[:, plane] * (wanted / radii)[:, None]
    found = alignment.apply(text)
    np.testing.assert_allclose(found, unit(expected @ basis.T + image.mean(axis=0)), rtol=0, atol=2e-3)


def test_quantiles_are_within_their_stated_error() -> None:
    rng = np.random.default_rng(0)
    radii = np.abs(np.stack([rng.normal(size=5000), rng.lognormal(-4, 1.5, 5000).clip(0, 1.9)], axis=1)).clip(0, 2)
    levels = np.linspace(0, 1, 101)
    sketch = RadiusSketch(2)
    for part in np.array_split(radii, 7):
        sketch.add(torch.from_numpy(part))
    found = sketch.quantiles(torch.from_numpy(levels)).numpy()
    for stream in range(2):
        expected = np.quantile(radii[:, stream], levels, method="inverted_cdf")
        np.testing.assert_allclose(found[stream], expected, rtol=RELATIVE_ERROR * 1.001, atol=1e-6)
    assert (np.diff(found, axis=1) >= 0).all()


def test_counts_do_not_depend_on_chunks_or_order() -> None:
    radii = torch.from_numpy(np.random.default_rng(0).uniform(0, 2, (999, 3)))
    whole, parts = RadiusSketch(3), RadiusSketch(3)
    whole.add(radii.clone())
    for part in radii.flip(0).split(10):
        parts.add(part.clone())
    assert bool((whole.counts == parts.counts).all()) and int(whole.counts.sum()) == 3 * 999


def test_radii_at_the_ends_are_counted() -> None:
    sketch = RadiusSketch(1)
    sketch.add(torch.tensor([[0.0], [1e-9], [2.0]], dtype=torch.float64))
    found = sketch.quantiles(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert found[0, 0] == 0 and found[0, 1] == pytest.approx(2, rel=2e-3)


def test_transfer_is_linear_between_and_proportional_beyond() -> None:
    source = torch.tensor([[1.0, 2.0, 2.0, 4.0]])
    target = torch.tensor([[10.0, 30.0, 40.0, 50.0]])
    values = torch.tensor([[0.0], [0.5], [1.5], [3.0], [4.0], [8.0]])
    found = transfer(values, source, target).flatten().tolist()
    assert found == pytest.approx([0, 5, 20, 45, 50, 100])


# Noise


def test_residual_noise_is_its_formula() -> None:
    text, image = two_sides()
    alignment = ResidualNoise(noise_scale=0.8, seed=3).fit(text, image)
    mean = image.mean(axis=0)

    def noisy(rows: np.ndarray, ids: np.ndarray, epoch: int) -> np.ndarray:
        aligned = plain_realign(text, text, image)
        values, vectors = np.linalg.eigh(cov(image) - cov(aligned))
        positive = (vectors * values.clip(0)) @ vectors.T * 0.8**2
        factor = np.sqrt(trace(image) / (trace(aligned) + np.trace(positive)))
        values, vectors = np.linalg.eigh(positive)
        noise = gaussian_rows(ids, DIM, seed=3, epoch=epoch) @ (vectors * np.sqrt(values.clip(0))) @ vectors.T
        return unit(mean + factor * (plain_realign(rows, text, image) - mean + noise))

    first = np.arange(400, dtype=np.uint64)
    shift = mean - noisy(text, first, 0).mean(axis=0)
    others, ids = two_sides(seed=1)[0][:50], np.arange(7, 57, dtype=np.uint64)
    expected = unit(noisy(others, ids, 2) + shift)
    np.testing.assert_allclose(alignment.apply(others, row_ids=ids, epoch=2), expected, rtol=0, atol=1e-7)
    share = alignment.details()["noise_share"]
    assert 0.1 < share < 0.5
    assert alignment.details()["text_factor"] ** 2 == pytest.approx(1 - share, rel=0.02)


def test_residual_noise_gives_the_cloud_the_mean_the_trace_and_more_of_the_shape_of_the_images() -> None:
    text, image = two_sides(8000, 3000)
    alignment = ResidualNoise(centroid_steps=2).fit(text, image)
    quiet = alignment.apply(text)
    for epoch, tolerance in ((0, 1e-3), (5, 0.02)):  # fitted on epoch 0; others differ by their sampling error
        noisy = alignment.apply(text, row_ids=range(8000), epoch=epoch)
        assert gap(noisy, image) < tolerance
        assert abs(trace(noisy) - trace(image)) < 2 * tolerance
        assert np.linalg.norm(cov(noisy) - cov(image)) < 0.7 * np.linalg.norm(cov(quiet) - cov(image))


def test_no_residual_noise_is_realign() -> None:
    text, image = two_sides()
    found = ResidualNoise(noise_scale=0).fit(text, image).apply(text, row_ids=range(400))
    assert gap(found, ReAlign().fit(text, image).apply(text)) < 2e-3


@pytest.mark.parametrize("method", ["c3", "diagonal", "residual_noise"])
def test_noise_depends_on_seed_epoch_and_id_alone(method: str) -> None:
    text, image = two_sides()

    def fitted(seed: int) -> Alignment:
        return built(method, jitter=0.1, seed=seed).fit(text, image)

    alignment = fitted(5)
    first = alignment.apply(text, row_ids=range(400), epoch=3)
    order = np.random.default_rng(0).permutation(400)
    np.testing.assert_allclose(alignment.apply(text[order], row_ids=order, epoch=3), first[order], rtol=0, atol=1e-14)
    alone = alignment.apply(text[17:18], row_ids=torch.tensor([17]), epoch=3)
    np.testing.assert_allclose(alone, first[17:18], rtol=0, atol=1e-14)
    others = [
        alignment.apply(text, row_ids=range(400), epoch=4),
        alignment.apply(text, row_ids=range(1, 401), epoch=3),
        fitted(6).apply(text, row_ids=range(400), epoch=3),
        alignment.apply(text),
    ]
    for other in others:
        assert np.abs(other - first).max(axis=1).min() > 1e-3


def test_jitter_is_added_before_the_normalisation() -> None:
    text, image = two_sides()
    noise = gaussian_rows(np.arange(400, dtype=np.uint64), DIM, seed=2, epoch=1)
    scaled = (text - text.mean(axis=0)) / text.std(axis=0) * image.std(axis=0) + image.mean(axis=0)
    found = Diagonal(jitter=0.3, seed=2).fit(text, image).apply(text, row_ids=range(400), epoch=1)
    np.testing.assert_allclose(found, unit(scaled + 0.3 * noise), rtol=0, atol=1e-14)


# Images


def test_unicorn_alone_moves_images() -> None:
    text, image = two_sides()
    for method in METHODS:
        found = build_alignment(method=method).fit(text, image).apply_to_images(2 * image)
        expected = unit(image - image.mean(axis=0)) if method == "unicorn" else image
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14, err_msg=method)


# Refusals

SINGULAR = (
    "the covariance of the text rows is singular (rank 5 of 6), so it has no inverse: set ridge above 0, or fit on "
    "more rows than columns"
)
FLAT = np.concatenate([np.random.default_rng(0).normal(size=(50, 5)), np.zeros((50, 1))], axis=1)


@pytest.mark.parametrize(
    ("alignment", "message"),
    [
        (
            Diagonal(),
            "text column 5 has zero variance, so Diagonal finds no scale for it: drop the column on both sides, or use "
            "another alignment",
        ),
        (
            GaussianOT(ridge=0),
            SINGULAR,
        ),
        (
            ShrunkOT(ridge=0, rank=6),
            SINGULAR,
        ),
        (
            Blockwise(ridge=0, rank=6),
            SINGULAR,
        ),
        (
            Quantile(ridge=0, rank=2),
            "the text rows have no variance in a direction outside of U, so Quantile finds no scale for it: set ridge "
            "above 0, or fit on more rows than columns",
        ),
        (
            Blockwise(rank=7),
            "rank=7 exceeds the width 6 of the rows: lower it, or set it to None to use energy",
        ),
    ],
)
def test_statistics_that_a_method_cannot_use_are_refused(alignment: Alignment, message: str) -> None:
    image = (np.random.default_rng(1).normal(size=(50, 6)) + 1) * [1, 1, 1, 1, 1, 0]
    with pytest.raises(ValueError) as caught:
        alignment.fit(FLAT, image)
    assert str(caught.value) == message
    with pytest.raises(ValueError, match="not fitted"):
        alignment.apply(image)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"none", "mean_shift", "c3", "unicorn", "residual_noise"}))
def test_rows_that_are_all_equal_are_refused(method: str) -> None:
    same = np.tile([[0.6, 0.8]], (5, 1))
    mixed = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    for text, image, side in ((same, mixed, "text"), (mixed, same, "image")):
        alignment = build_alignment(method=method)
        name = type(alignment).__name__
        with pytest.raises(ValueError) as caught:
            alignment.fit(text, image)
        assert str(caught.value) == f"the {side} rows are all equal, so {name} finds no scale (zero trace): add rows"


@pytest.mark.parametrize("method", sorted({*METHODS} - {"diagonal"}))
def test_fewer_rows_than_columns_are_enough_with_a_ridge(method: str) -> None:
    text, image = two_sides(12, 9)
    found = build_alignment(method=method).fit(text, image).apply(two_sides(seed=1)[0])
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "blockwise", "rank": 0}, "rank=0 must be at least 1; None takes it from energy"),
        ({"method": "shrunk_ot", "energy": 0.0}, "energy=0.0 must be a share of the trace, above 0 and at most 1"),
        ({"method": "quantile", "energy": 1.1}, "energy=1.1 must be a share of the trace, above 0 and at most 1"),
        ({"method": "quantile", "rank": 7}, "rank=7 must be even: coordinates are matched in pairs"),
        ({"method": "gaussian_ot", "ridge": -1.0}, "ridge=-1.0 must be a share of the mean variance, not below zero"),
        (
            {"method": "shrunk_ot", "shrinkage": 1.5},
            "shrinkage=1.5 must be from 0 (GaussianOT) to 1 (ReAlign); None estimates it",
        ),
        (
            {"method": "residual_noise", "noise_scale": -1.0},
            "noise_scale=-1.0 must be a number not below zero; zero adds no noise",
        ),
        ({"method": "diagonal", "jitter": -1.0}, "jitter=-1.0 must be a number not below zero; zero adds no noise"),
        ({"method": "diagonal", "seed": -1}, "seed=-1 must not be negative and must fit 64 bits"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build_alignment(**settings)
    assert str(caught.value) == message


def test_every_method_says_what_it_needs_and_what_is_open() -> None:
    for cls in METHODS.values():
        assert cls.__doc__ is not None and "Needs:" in cls.__doc__
        assert "Open:" in cls.__doc__ or cls is NoAlignment
