"""The alignments against few-liners in float64, the authors' own output, and the invariances that they must have."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from clouds import METHODS, built

import revision
from revision.alignment import (
    C3,
    Alignment,
    MeanShift,
    NoAlignment,
    ReAlign,
    build_alignment,
    load_alignment,
)
from revision.alignment.noise import gaussian_rows

GOLDEN = Path(__file__).parent / "golden" / "realign_reference.npz"
DIM = 24
# Matching a few hundred radii one by one has steep stretches, which magnify rounding.
TOLERANCE = {method: 1e-11 if method == "quantile" else 1e-13 for method in METHODS}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def two_sides(text: int = 400, image: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two anisotropic clouds of unit rows of different spread with a gap between them, float64."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(1.5, 0.2, DIM)
    middle = rng.normal(size=(2, DIM))
    return (
        unit(rng.normal(size=(text, DIM)) * spread + middle[0]),
        unit(rng.normal(size=(image, DIM)) * spread[::-1] * 0.6 + middle[1]),
    )


def gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)))


def trace(rows: np.ndarray) -> float:
    return float(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean())


def plain_mean_shift(rows: np.ndarray, text: np.ndarray, image: np.ndarray) -> np.ndarray:
    return unit(rows - text.mean(axis=0) + image.mean(axis=0))


def plain_realign(rows: np.ndarray, text: np.ndarray, image: np.ndarray, steps: int = 1) -> np.ndarray:
    """ReVision v3, Sec. 4, formula by formula; `rows` may be other rows than those that the statistics come from."""
    mu_x, mu_y = image.mean(axis=0), text.mean(axis=0)
    scale = np.sqrt(trace(image) / trace(text))
    rows, text = (unit(mu_x + scale * (side - mu_y)) for side in (rows, text))
    for _ in range(steps):
        mean = text.mean(axis=0)
        rows, text = (unit(side - mean + mu_x) for side in (rows, text))
    return rows


@pytest.mark.parametrize(
    ("alignment", "plain"),
    [
        (NoAlignment(), lambda rows, text, image: rows),
        (MeanShift(), plain_mean_shift),
        (C3(), plain_mean_shift),
        (ReAlign(centroid_steps=0), lambda rows, text, image: plain_realign(rows, text, image, 0)),
        (ReAlign(), plain_realign),
        (ReAlign(centroid_steps=4), lambda rows, text, image: plain_realign(rows, text, image, 4)),
    ],
    ids=["none", "mean_shift", "c3 without ids", "realign 0", "realign", "realign 4"],
)
def test_method_is_its_formula(alignment: Alignment, plain: Callable[..., np.ndarray]) -> None:
    text, image = two_sides()
    others = two_sides(seed=1)[0]
    alignment.fit(3 * text, image * np.linspace(1, 2, len(image))[:, None])  # norms must not matter
    np.testing.assert_allclose(alignment.apply(5 * others), plain(others, text, image), rtol=0, atol=1e-14)
    statistics = alignment.statistics
    assert statistics.gap_before == pytest.approx(gap(text, image), rel=1e-12)
    assert statistics.gap_after == pytest.approx(gap(plain(text, text, image), image), rel=1e-9, abs=1e-14)
    assert statistics.text.trace == pytest.approx(trace(text), rel=1e-12)
    assert statistics.image.trace == pytest.approx(trace(image), rel=1e-12)
    assert alignment.dim == DIM


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_realign_is_what_the_authors_compute(dtype: Any) -> None:
    golden = np.load(GOLDEN)
    alignment = ReAlign().fit(golden["text"], golden["image"])
    statistics = alignment.statistics
    found = alignment.apply(golden["text"].astype(dtype))
    np.testing.assert_allclose(found, golden["aligned"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(statistics.text.mean, golden["mu_text"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(statistics.image.mean, golden["mu_image"], rtol=0, atol=1e-6)
    assert alignment.scale == pytest.approx(float(golden["scale"]), abs=1e-6)
    assert statistics.text.trace == pytest.approx(float(golden["trace_text"]), abs=1e-6)
    assert statistics.image.trace == pytest.approx(float(golden["trace_image"]), abs=1e-6)
    before_centroid = ReAlign(centroid_steps=0).fit(golden["text"], golden["image"])
    mean = before_centroid.apply(golden["text"].astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(mean, golden["mu_prime"], rtol=0, atol=1e-6)


def test_trace_is_one_less_the_squared_mean() -> None:
    text, image = two_sides()
    for side in (NoAlignment().fit(text, image).statistics.text, ReAlign().fit(text, image).statistics.image):
        assert side.trace == pytest.approx(1 - float(side.mean @ side.mean), abs=1e-14)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"diagonal"}))  # which goes by the axes
def test_rotating_both_sides_rotates_the_result(method: str) -> None:
    text, image = two_sides()
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(DIM, DIM)))[0]
    straight = built(method, centroid_steps=3).fit(text, image).apply(text)
    rotated = built(method, centroid_steps=3).fit(text @ rotation, image @ rotation)
    np.testing.assert_allclose(rotated.apply(text @ rotation), straight @ rotation, rtol=0, atol=TOLERANCE[method])


@pytest.mark.parametrize("method", METHODS)
def test_chunks_do_not_matter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, image = (side.astype(np.float32) for side in two_sides())
    whole = built(method, centroid_steps=2).fit(text, image)
    reference = whole.apply(text.astype(np.float64), row_ids=range(400), epoch=1)
    monkeypatch.setattr("revision.alignment.rows.CPU_BLOCK", 11 * DIM * 8)  # eleven float64 rows a thread
    parts = built(method, centroid_steps=2).fit([text[:7], text[7:]], np.array_split(image, 9))
    found = parts.apply(text.astype(np.float64), row_ids=range(400), epoch=1)
    np.testing.assert_allclose(found, reference, rtol=0, atol=TOLERANCE[method])


@pytest.mark.parametrize("method", METHODS)
def test_order_does_not_matter(method: str) -> None:
    text, image = two_sides()
    shuffled = [np.random.default_rng(0).permutation(side) for side in (text, image)]
    reference = built(method, centroid_steps=2).fit(text, image).apply(text)
    found = built(method, centroid_steps=2).fit(*shuffled).apply(text)
    np.testing.assert_allclose(found, reference, rtol=0, atol=TOLERANCE[method])


def test_until_reaches_its_tolerance_and_the_traces_with_it() -> None:
    text, image = two_sides()
    alignment = ReAlign(until=1e-7).fit(text, image)
    found = alignment.apply(text)
    assert gap(found, image) < 1e-7
    assert alignment.statistics.gap_after == pytest.approx(gap(found, image), rel=1e-6)
    assert abs(trace(found) - trace(image)) < 2e-7  # |T - T'| = | ||mu||^2 - ||mu'||^2 | <= 2 gap
    assert gap(ReAlign().fit(text, image).apply(text), image) > 1e-4


def test_each_centroid_step_narrows_the_gap() -> None:
    text, image = two_sides()
    gaps = [gap(ReAlign(centroid_steps=steps).fit(text, image).apply(text), image) for steps in range(5)]
    assert all(after < 0.9 * before for before, after in pairwise(gaps))


def test_until_below_float64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"until=1e-30 is out of reach: the gap stays at .*; raise until"):
        ReAlign(until=1e-30).fit(*two_sides())


def test_measuring_the_gap_can_be_left_out() -> None:
    assert ReAlign().fit(*two_sides(), measure_gap=False).statistics.gap_after is None


def test_noise_depends_on_seed_epoch_and_id_alone() -> None:
    text, image = two_sides()
    alignment = C3(noise_std=0.2, seed=5).fit(text, image)
    first = alignment.apply(text, row_ids=range(400), epoch=3)
    order = np.random.default_rng(0).permutation(400)
    np.testing.assert_array_equal(alignment.apply(text[order], row_ids=order, epoch=3), first[order])
    np.testing.assert_array_equal(alignment.apply(text[17:18], row_ids=torch.tensor([17]), epoch=3), first[17:18])
    others = [
        alignment.apply(text, row_ids=range(400), epoch=4),
        alignment.apply(text, row_ids=range(1, 401), epoch=3),
        C3(noise_std=0.2, seed=6).fit(text, image).apply(text, row_ids=range(400), epoch=3),
        alignment.apply(text, row_ids=[str(number) for number in range(400)], epoch=3),
    ]
    for other in others:
        assert np.abs(other - first).max(axis=1).min() > 1e-3
    named = [f"row {number}" for number in range(400)]
    again = alignment.apply(text[::-1], row_ids=named[::-1])[::-1]
    np.testing.assert_array_equal(again, alignment.apply(text, row_ids=named))


def test_noise_is_gaussian_of_the_given_spread_on_every_coordinate() -> None:
    text, image = two_sides()
    shifted = text - text.mean(axis=0) + image.mean(axis=0)
    noise = gaussian_rows(np.arange(400, dtype=np.uint64), DIM, seed=0, epoch=2)
    found = C3(noise_std=0.3).fit(text, image).apply(text, row_ids=range(400), epoch=2)
    np.testing.assert_allclose(found, unit(shifted + 0.3 * noise), rtol=0, atol=1e-14)
    many = gaussian_rows(np.arange(20000, dtype=np.uint64), DIM, seed=1, epoch=0)
    np.testing.assert_allclose(np.cov(many.T), np.eye(DIM), atol=0.05)  # 7 standard errors
    np.testing.assert_allclose(many.mean(axis=0), 0, atol=0.05)
    assert np.abs(np.corrcoef(many[:-1].ravel(), many[1:].ravel())[0, 1]) < 0.01
    assert (many**4).mean() == pytest.approx(3, abs=0.1)


def test_other_methods_take_ids_and_draw_nothing() -> None:
    text, image = two_sides()
    alignment = ReAlign().fit(text, image)
    np.testing.assert_array_equal(alignment.apply(text, row_ids=range(400), epoch=9), alignment.apply(text))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "torch", "columns first"])
def test_results_are_of_the_callers_kind(method: str, dtype: str, kind: str) -> None:
    text, image = two_sides()
    alignment = build_alignment(method=method).fit(text, image)
    tensor = torch.from_numpy(text).to(getattr(torch, dtype))
    reference = alignment.apply(tensor.double())
    rows: Any = tensor.T.contiguous().T if kind == "columns first" else tensor
    if kind == "numpy":
        if dtype == "bfloat16":
            return
        rows = tensor.numpy()
        rows.flags.writeable = False
    before = rows.copy() if kind == "numpy" else rows.clone()
    found = alignment.apply(rows)
    assert type(found) is type(rows) and found.dtype == rows.dtype and found.shape == rows.shape
    precision = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-7, "float64": 1e-15}[dtype]
    np.testing.assert_allclose(np.asarray(torch.as_tensor(found).double()), reference, rtol=0, atol=precision)
    assert bool((rows == before).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_gives_what_the_cpu_gives(method: str) -> None:
    text, image = two_sides()
    reference = build_alignment(method=method, until=1e-7).fit(text, image)
    on_gpu = build_alignment(method=method, until=1e-7).fit(
        torch.from_numpy(text).cuda(), torch.from_numpy(image).cuda()
    )
    found = on_gpu.apply(torch.from_numpy(text).cuda(), row_ids=range(400))
    assert found.is_cuda
    np.testing.assert_allclose(
        found.cpu(), reference.apply(text, row_ids=range(400)), rtol=0, atol=10 * TOLERANCE[method]
    )


def test_no_rows_give_no_rows() -> None:
    text, image = two_sides()
    assert ReAlign().fit(text, image).apply(text[:0].astype(np.float16)).shape == (0, DIM)


def test_gradients_stop() -> None:
    text, image = two_sides()
    rows = torch.from_numpy(text).requires_grad_()
    assert not MeanShift().fit(rows, image).apply(rows).requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_alignment_is_the_same_bit_for_bit(method: str, tmp_path: Path) -> None:
    text, image = two_sides()
    alignment = built(method, centroid_steps=2, until=None, noise_std=0.1, seed=3).fit(text, image)
    alignment.save(tmp_path / "a")
    loaded = load_alignment(tmp_path / "a")
    assert type(loaded) is type(alignment)
    assert loaded.facts() == alignment.facts()
    torch.testing.assert_close(loaded.statistics.text.mean, alignment.statistics.text.mean, rtol=0, atol=0)
    expected = alignment.apply(text, row_ids=range(400), epoch=1)
    np.testing.assert_array_equal(loaded.apply(text, row_ids=range(400), epoch=1), expected)
    loaded.save(tmp_path / "b")
    for name in ("alignment.json", "alignment.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["alignment.json", "alignment.safetensors"]


def test_the_facts_say_what_was_fitted(tmp_path: Path) -> None:
    text, image = two_sides()
    ReAlign(centroid_steps=2).fit(text, image).save(tmp_path)
    facts = json.loads((tmp_path / "alignment.json").read_text())
    assert facts["method"] == "realign" and facts["dim"] == DIM
    assert facts["parameters"] == {"centroid_steps": 2, "until": None, "anchor": True, "trace": True}
    assert facts["text"] == {"count": 400, "skipped": 0, "trace": pytest.approx(trace(text)), "fingerprint": None}
    assert facts["image"]["count"] == 300
    assert facts["scale"] == pytest.approx(math.sqrt(trace(image) / trace(text)))
    plain = plain_realign(text, text, image, steps=2)
    assert facts["centroid_gap"] == {
        "before": pytest.approx(gap(text, image)),
        "after": pytest.approx(gap(plain, image)),
    }


def test_a_file_from_before_steps_and_rows_could_be_left_out_loads(tmp_path: Path) -> None:
    text, image = two_sides()
    alignment = ReAlign().fit(text, image)
    alignment.save(tmp_path)
    facts = json.loads((tmp_path / "alignment.json").read_text())
    for name in ("anchor", "trace"):
        del facts["parameters"][name]
    for name in ("text", "image"):
        del facts[name]["skipped"]
    del facts["details"]
    (tmp_path / "alignment.json").write_text(json.dumps(facts))
    loaded = load_alignment(str(tmp_path))
    np.testing.assert_array_equal(loaded.apply(text), alignment.apply(text))
    assert loaded.statistics.text_skipped == 0


@pytest.mark.parametrize("method", METHODS)
def test_several_arrays_are_mapped_one_by_one(method: str) -> None:
    text, image = two_sides()
    alignment = build_alignment(method=method).fit(text, image)
    ids = np.arange(100, 500)
    whole = alignment.apply(text, row_ids=ids, epoch=1)
    chunks: list[Any] = [text[:7], torch.from_numpy(text[7:50]).float(), text[50:50], text[50:]]
    found = list(alignment.apply(iter(chunks), row_ids=ids, epoch=1))
    assert [type(part) for part in found] == [np.ndarray, torch.Tensor, np.ndarray, np.ndarray]
    assert [part.dtype for part in found] == [chunk.dtype for chunk in chunks]
    np.testing.assert_allclose(np.concatenate([np.asarray(part) for part in found]), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_stores_are_fitted_on_and_mapped(method: str, tiny_store: Any, tmp_path: Path) -> None:
    text = tiny_store("text", n=95, dim=DIM)
    image = tiny_store("image", n=85, dim=DIM, seed=1, shift=0.5)
    alignment = build_alignment(method=method).fit(text, image)
    assert alignment.statistics.text_fingerprint == text.fingerprint()
    rows = text.rows(slice(None))
    from_arrays = build_alignment(method=method).fit(rows, image.rows(slice(None)))
    found = list(alignment.apply(text, row_ids=range(95)))
    assert all(isinstance(part, np.ndarray) and part.dtype == np.float16 for part in found)
    reference = from_arrays.apply(rows, row_ids=range(95))
    np.testing.assert_allclose(np.concatenate(found).astype(float), reference.astype(float), rtol=0, atol=1e-3)
    np.save(tmp_path / "rows.npy", rows)
    mapped = alignment.apply(np.load(tmp_path / "rows.npy", mmap_mode="r"), row_ids=range(95))
    np.testing.assert_array_equal(mapped, alignment.apply(rows, row_ids=range(95)))


def test_several_arrays_and_their_ids_must_agree() -> None:
    alignment = ReAlign().fit(*two_sides())
    rows = np.ones((3, DIM))
    with pytest.raises(ValueError, match="row_ids has 4 entries for 6 rows or more; give one id a row"):
        list(alignment.apply([rows, rows], row_ids=range(4)))
    with pytest.raises(ValueError, match="row_ids has 7 entries for 6 rows; give one id a row"):
        list(alignment.apply([rows, rows], row_ids=range(7)))
    with pytest.raises(ValueError, match="^text row 4 is zero, so it has no direction: remove it or embed it again$"):
        list(alignment.apply([rows, rows * [[1], [0], [1]]]))
    with pytest.raises(ValueError, match="rows have 2 columns but the alignment was fitted on 24"):
        list(alignment.apply([rows, MIXED]))
    with pytest.raises(ValueError, match="rows is a int; rows must be a numpy array or a torch tensor"):
        alignment.apply(5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="epoch=-1 must be a whole number from 0 on: epochs count from 0"):
        alignment.apply(rows, epoch=-1)


@pytest.mark.parametrize("method", METHODS)
def test_rows_without_a_direction_are_skipped_and_counted_when_asked(method: str, tmp_path: Path) -> None:
    text, image = two_sides()
    dirty = np.insert(text, [3, 200, 400], [[0.0] * DIM, [np.nan] * DIM, [1.0] * (DIM - 1) + [np.inf]], axis=0)
    alignment = build_alignment(method=method)
    with pytest.raises(ValueError, match="^text row 3 is zero, so it has no direction: remove it or embed it again$"):
        alignment.fit(dirty, image)
    alignment.fit([dirty[:3], dirty[3:4], dirty[4:]], image, skip_invalid=True)
    reference = build_alignment(method=method).fit(text, image)
    np.testing.assert_allclose(alignment.apply(text), reference.apply(text), rtol=0, atol=TOLERANCE[method])
    alignment.save(tmp_path)
    for known in (alignment.statistics, load_alignment(tmp_path).statistics):
        assert (known.text.count, known.text_skipped, known.image.count, known.image_skipped) == (400, 3, 300, 0)
    facts = json.loads((tmp_path / "alignment.json").read_text())
    assert (facts["text"]["skipped"], facts["image"]["skipped"]) == (3, 0)


def test_a_source_of_nothing_but_invalid_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="text holds no rows; statistics need at least two"):
        ReAlign().fit(np.zeros((4, DIM)), two_sides()[1], skip_invalid=True)


def test_loading_from_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"alignment\.json is missing; run `revision align`"):
        load_alignment(tmp_path)


def saved(folder: Path) -> Path:
    ReAlign().fit(*two_sides()).save(folder)
    return folder / "alignment.json"


def test_files_of_two_saves_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    ReAlign().fit(*two_sides(seed=1)).save(tmp_path / "b")
    (tmp_path / "a" / "alignment.safetensors").replace(tmp_path / "b" / "alignment.safetensors")
    with pytest.raises(ValueError, match="are of two saves"):
        load_alignment(tmp_path / "b")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 2', "is not of alignment format 1"),
        ("{", "", "is not JSON"),
        (
            '"method": "realign"',
            '"method": "other"',
            "of alignment method 'other'; there are blockwise, c3",
        ),
    ],
)
def test_a_foreign_file_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = saved(tmp_path)
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load_alignment(tmp_path)


LACKING = ["method", "parameters", "text", "text.count", "image.fingerprint", "centroid_gap.after", "tensors_sha256"]


@pytest.mark.parametrize("name", LACKING)
def test_a_file_without_one_of_its_fields_is_refused(name: str, tmp_path: Path) -> None:
    file = saved(tmp_path)
    end = "so it is damaged or of another version: run `revision align` again, or Alignment.save"
    *section, entry = name.split(".")
    for value, expected in ((None, f"holds no {name!r}"), ([], f"holds {name!r} = []")):
        facts = json.loads(file.read_text())
        holder = facts[section[0]] if section else facts
        del holder[entry]
        if value is not None:
            holder[entry] = value
        (tmp_path / "alignment.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError) as caught:
            load_alignment(tmp_path)
        assert str(caught.value) == f"{file} {expected}, {end}"
        saved(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sharpness", 2, "has a parameter 'sharpness', which realign lacks in this version"),
        ("until", -1, "has a parameter that realign refuses (until=-1 must be a positive distance, such as 1e-7)"),
    ],
)
def test_parameters_of_another_version_are_refused(name: str, value: Any, expected: str, tmp_path: Path) -> None:
    file = saved(tmp_path)
    facts = json.loads(file.read_text())
    facts["parameters"][name] = value
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError) as caught:
        load_alignment(tmp_path)
    assert str(caught.value) == f"{file} {expected}: run `revision align` again, or Alignment.save"


def test_vectors_without_the_statistics_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path)
    vectors = tmp_path / "alignment.safetensors"
    tensors = safetensors.torch.load_file(vectors)
    del tensors["image.mean"]
    safetensors.torch.save_file(tensors, vectors)
    facts = json.loads(file.read_text())
    facts["tensors_sha256"] = hashlib.sha256(vectors.read_bytes()).hexdigest()
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError) as caught:
        load_alignment(tmp_path)
    end = "so it is of another version: run `revision align` again, or Alignment.save"
    assert str(caught.value) == f"{vectors} holds no 'image.mean', {end}"


SAME = np.tile([[0.6, 0.8]], (5, 1))
MIXED = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


@pytest.mark.parametrize(
    ("text", "image", "message"),
    [
        (MIXED[:1], MIXED, "text has 1 row; an alignment needs at least two"),
        (MIXED, MIXED[:1], "image has 1 row"),
        (MIXED, np.ones((4, 3)), "text has 2 columns but image 3: embed both with one encoder"),
        (SAME, MIXED, "the text rows are all equal"),
        (MIXED, SAME, "the image rows are all equal"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(text: np.ndarray, image: np.ndarray, message: str) -> None:
    alignment = ReAlign()
    with pytest.raises(ValueError, match=message):
        alignment.fit(text, image)
    with pytest.raises(ValueError, match="not fitted"):
        alignment.apply(text)


def test_a_row_mapped_onto_the_origin_is_refused() -> None:
    """mu_y = 0 and mu_x = -e: the shifted row is the zero vector."""
    text = np.array([[1.0, 0.0], [-1.0, 0.0]])
    with pytest.raises(ValueError, match="mapped onto the zero vector"):
        MeanShift().fit(text, np.array([[-1.0, 0.0], [-1.0, 0.0]]))


@pytest.mark.parametrize("method", METHODS)
def test_apply_before_fit_is_refused(method: str, tmp_path: Path) -> None:
    alignment = build_alignment(method=method)
    with pytest.raises(ValueError, match=r"is not fitted: call fit\(text, image\)"):
        alignment.apply(MIXED)
    with pytest.raises(ValueError, match="is not fitted"):
        alignment.save(tmp_path)


def test_wrong_rows_are_refused() -> None:
    alignment = ReAlign().fit(*two_sides())
    with pytest.raises(ValueError, match="rows have 2 columns but the alignment was fitted on 24"):
        alignment.apply(MIXED)
    rows = np.ones((3, DIM))
    rows[2, 5] = np.nan
    with pytest.raises(ValueError, match="text row 2 has a NaN"):
        alignment.apply(rows)
    with pytest.raises(ValueError, match="row_ids has 2 entries for 3 rows"):
        alignment.apply(np.ones((3, DIM)), row_ids=[1, 2])
    with pytest.raises(ValueError, match=r"row_ids\[1\] is a float"):
        alignment.apply(np.ones((2, DIM)), row_ids=[1, 2.5])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "nonsense"}, "alignment method = nonsense: must be one of blockwise, c3"),
        ({"method": "realign", "centroid_steps": -1}, "centroid_steps=-1 must not be negative"),
        ({"method": "realign", "until": 0.0}, "until=0.0 must be a positive distance"),
        ({"method": "c3", "noise_std": -0.1}, "noise_std=-0.1 must be a number not below zero"),
        ({"method": "c3", "noise_std": math.nan}, "noise_std=nan must be"),
        ({"method": "c3", "seed": -1}, "seed=-1 must not be negative and must fit 64 bits"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_alignment(**settings)


def test_the_library_face_loads_when_it_is_used() -> None:
    code = (
        "import sys, revision; "
        "assert not {'torch', 'numpy', 'transformers', 'open_clip', 'matplotlib'} & set(sys.modules), sys.modules; "
        "assert revision.ReAlign.method == 'realign' and 'torch' in sys.modules; "
        "assert 'transformers' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_name_of_the_library_face_is_there() -> None:
    for name in revision.__all__:
        assert getattr(revision, name) is not None
    assert dir(revision) == sorted(revision.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Realign'"):
        _ = revision.Realign
