"""Alignments on rows that no fit has seen: sample-size curve and domain transfer, against arithmetic of their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import DIM, METHODS, cloud, make

from revision.alignment import ReAlign, Unicorn, build_alignment
from revision.embeddings import EmbeddingStore, StoreWriter
from revision.geometry.domain_transfer import domain_transfer
from revision.geometry.held_out import Domain, moved_by
from revision.geometry.sample_size import size_curve


def plain_gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)))


def test_size_curve_is_measured_on_rows_that_no_fit_has_seen() -> None:
    text, image = cloud(400, shift=-0.2), cloud(300, 1, 0.4)
    steps: list[str] = []
    found = size_curve(
        Domain(text, image), make, ["realign", "mean_shift"], sizes=[200, 10, 50], trials=3, held_out=80, seed=5,
        on_step=steps.append,
    )  # fmt: skip
    assert found["sizes"] == [10, 50, 200] and len(steps) == 9 and found["refused"] == {}
    raw = []
    for trial in range(3):
        rows = [
            np.random.default_rng([5, trial, number]).choice(len(side), 280, replace=False)
            for number, side in enumerate((text, image))
        ]
        held = text[rows[0][:80]], image[rows[1][:80]]
        raw.append(plain_gap(*held))
        for number, size in enumerate([10, 50, 200]):
            fit = text[rows[0][80 : 80 + size]], image[rows[1][80 : 80 + size]]
            shifted = held[0] - fit[0].mean(axis=0) + fit[1].mean(axis=0)
            shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
            gap = found["methods"]["mean_shift"]["centroid_gap"][number][trial]
            assert gap == pytest.approx(plain_gap(shifted, held[1]), rel=1e-9)
    assert found["raw"]["centroid_gap"] == pytest.approx(np.mean(raw))
    gaps = np.mean(found["methods"]["realign"]["centroid_gap"], axis=1)
    assert gaps[0] > gaps[1] > gaps[2]
    # ReAlign's gap over seen rows is next to nothing, so that only the sampling of both samples is left.
    np.testing.assert_allclose(gaps, found["expected"], rtol=0.5)
    assert json.loads(json.dumps(found)) is not None


def test_a_fit_that_refuses_is_said_and_left_out(tmp_path: Path) -> None:
    domain = Domain(cloud(400, shift=-0.2), cloud(300, 1, 0.4))
    found = size_curve(domain, make, ["needs_rows", "realign"], sizes=[20, 40], trials=2, held_out=80, seed=0)
    assert found["methods"]["needs_rows"]["centroid_gap"][0] == [None, None]
    assert None not in found["methods"]["needs_rows"]["centroid_gap"][1]
    assert found["refused"] == {"needs_rows": {20: "the fit needs 30 rows, there are 20"}}


@pytest.mark.parametrize(
    ("sizes", "held_out", "sentence"),
    [
        ([1, 10], 50, r"sizes=\[1, 10\] and held_out=50 must be numbers of rows, at least 2 each"),
        ([], 50, r"sizes=\[\] and held_out=50 must be"),
        ([100], 1, "held_out=1 must be"),
        ([100, 260], 50, "a fit on 260 rows beside 50 held-out ones needs 310 image rows, there are 300: take smaller"),
    ],
)
def test_sizes_are_checked(sizes: list[int], held_out: int, sentence: str) -> None:
    domain = Domain(cloud(400), cloud(300, 1))
    with pytest.raises(ValueError, match=sentence):
        size_curve(domain, make, ["realign"], sizes=sizes, trials=1, held_out=held_out, seed=0)


def test_domain_transfer_fits_on_one_half_and_measures_on_the_other() -> None:
    domains = {
        "one": Domain(cloud(200, shift=-0.2), cloud(160, 1, 0.4)),
        "two": Domain(cloud(120, 2, shift=0.5), cloud(100, 3, -0.3)),
    }
    steps: list[str] = []
    found = domain_transfer(
        domains, make, ["mean_shift", "realign"], most=150, trials=2, seed=5, on_step=steps.append
    )  # fmt: skip
    assert len(steps) == 4 and found["domains"] == ["one", "two"]
    assert found["rows"] == {"one": {"text": 75, "image": 75}, "two": {"text": 60, "image": 50}}
    matrices = []
    for trial in range(2):
        halves = {}
        for name, domain in domains.items():
            for number, (side, rows) in enumerate((("text", domain.text), ("image", domain.image))):
                assert isinstance(rows, np.ndarray)
                count = min(150, len(rows))
                order = np.random.default_rng([5, trial, number]).choice(len(rows), count, replace=False)
                halves[name, side] = rows[order[: count // 2]], rows[order[count // 2 :]]
        matrix = np.empty((2, 2))
        for row, source in enumerate(domains):
            for column, target in enumerate(domains):
                shift = halves[source, "image"][0].mean(axis=0) - halves[source, "text"][0].mean(axis=0)
                shifted = halves[target, "text"][1] + shift
                shifted /= np.linalg.norm(shifted, axis=1, keepdims=True)
                matrix[row, column] = plain_gap(shifted, halves[target, "image"][1])
        matrices.append(matrix)
    values = found["methods"]["mean_shift"]["centroid_gap"]
    np.testing.assert_allclose(values["mean"], np.mean(matrices, axis=0), rtol=1e-9)
    np.testing.assert_allclose(values["std"], np.std(matrices, axis=0), rtol=1e-6)
    matrix = np.array(found["methods"]["realign"]["centroid_gap"]["mean"])
    assert matrix[0, 0] < matrix[1, 0] and matrix[1, 1] < matrix[0, 1]  # a domain's own statistics align best
    assert found["raw"]["one"]["centroid_gap"] > 3 * matrix[0, 0] and 0.5 < matrix[0, 0] / found["floor"]["one"] < 2


def test_a_half_that_a_method_refuses_is_said_and_left_out() -> None:
    domains = {"few": Domain(cloud(40), cloud(90, 1, 0.4)), "many": Domain(cloud(90, 2), cloud(90, 3, 0.4))}
    found = domain_transfer(domains, make, ["needs_rows", "realign"], most=99, trials=2, seed=0)
    assert found["refused"] == {"needs_rows": {"few": "the fit needs 30 rows, there are 20"}}
    for statistic in ("mean", "std"):
        few, many = found["methods"]["needs_rows"]["centroid_gap"][statistic]
        assert few == [None, None] and None not in many
        assert None not in np.ravel(found["methods"]["realign"]["frechet_distance"][statistic])
    assert "NaN" not in json.dumps(found)


@pytest.mark.parametrize("method", METHODS)
def test_every_alignment_can_be_held_out(method: str) -> None:
    domain = Domain(cloud(300, shift=-0.2), cloud(300, 1, 0.4))
    options: dict[str, Any] = {"trials": 1, "seed": 0}
    found = size_curve(
        domain, lambda name: build_alignment(method=name), [method], sizes=[150], held_out=100, **options
    )  # fmt: skip
    after, before = found["methods"][method]["centroid_gap"][0][0], found["raw"]["centroid_gap"]
    assert after < 0.5 * before if method != "none" else after == pytest.approx(before)
    other = Domain(cloud(300, 2, shift=0.5), cloud(300, 3, -0.3))
    matrix = domain_transfer(
        {"one": domain, "other": other}, lambda name: build_alignment(method=name), [method], most=300, **options
    )["methods"][method]["centroid_gap"]["mean"]  # fmt: skip
    assert matrix[0][0] < matrix[1][0] or method == "none"


def test_an_alignment_that_maps_images_is_held_against_the_mapped_images() -> None:
    text, image = cloud(300, shift=-0.2), cloud(300, 1, 0.4)
    fitted = Unicorn().fit(text, image)
    moved = moved_by(fitted, image)
    assert moved is not None
    centred = image - image.mean(axis=0)
    np.testing.assert_allclose(moved, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-12)
    assert moved_by(ReAlign().fit(text, image), image.astype(np.float32)) is None
    found = size_curve(
        Domain(text, image), lambda _: Unicorn(), ["unicorn"], sizes=[200], trials=1, held_out=100, seed=0
    )  # fmt: skip
    assert found["methods"]["unicorn"]["centroid_gap"][0][0] < 0.5 * found["raw"]["centroid_gap"]


def test_a_domain_of_few_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="domain small has 7 texts and 50 images; .* give at least 8 of both"):
        domain_transfer({"small": Domain(cloud(7), cloud(50))}, make, ["realign"], most=99, trials=1, seed=0)


def test_stores_are_sources_of_held_out_rows(tmp_path: Path) -> None:
    rows = {"text": cloud(150, shift=-0.2).astype(np.float16), "image": cloud(150, 1, 0.4).astype(np.float16)}
    stores = {}
    for kind, values in rows.items():
        writer = StoreWriter(
            tmp_path / kind, kind=kind, dim=DIM, encoder={"name": "tiny"}, records_fingerprint="f", records=150,
            shard_size=64, reject_budget=0.0,
        )  # fmt: skip
        for shard in writer.missing():
            part = list(writer.positions(shard))
            ids = [str(number) for number in part]
            writer.write(
                shard, rows=values[part].astype(np.float32), ids=ids, payloads=ids, lengths=[1] * len(part), rejected=[]
            )
        writer.finish()
        stores[kind] = EmbeddingStore.open(tmp_path / kind)
    options: dict[str, Any] = {"sizes": [20, 60], "trials": 2, "held_out": 40, "seed": 0}
    from_stores = size_curve(Domain(stores["text"], stores["image"]), make, ["realign"], **options)
    from_arrays = size_curve(Domain(rows["text"], rows["image"]), make, ["realign"], **options)
    assert from_stores == from_arrays
