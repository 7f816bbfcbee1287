"""Chains in machine code, beside plain float64 arithmetic and beside the alignment before it was compiled."""

from __future__ import annotations

import copy
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from revision import C3, Diagonal, MeanShift, ReAlign, Unicorn, load_alignment
from revision.alignment import Alignment

pytestmark = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed (extra `compiled`)")

DIM, COUNT = 37, 501  # neither is a multiple of a register's width


def raw(seed: int, count: int = COUNT) -> np.ndarray:
    """Rows of many lengths about a mean of their own, float16 [count, DIM]."""
    rng = np.random.default_rng(seed)
    rows = np.eye(DIM)[seed] + 0.6 * rng.standard_normal((count, DIM)) / np.sqrt(DIM)
    return (rows * rng.uniform(0.1, 30.0, (count, 1))).astype(np.float16)


def unit(rows: np.ndarray) -> np.ndarray:
    """Each row over its norm."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fitted(alignment: Alignment) -> Alignment:
    """On two clouds that lie apart."""
    return alignment.fit(raw(0), raw(1))


def by_hand(text: np.ndarray, image: np.ndarray, rows: np.ndarray, scale: bool, steps: int) -> np.ndarray:
    """ReAlign, or the mean shift without its scale, in float64."""
    y, x = unit(text.astype(float)), unit(image.astype(float))
    spread = [np.square(side - side.mean(axis=0)).sum(axis=1).mean() for side in (x, y)]
    factor = np.sqrt(spread[0] / spread[1]) if scale else 1.0
    shift = x.mean(axis=0) - factor * y.mean(axis=0)
    fit, result = unit(factor * y + shift), unit(factor * unit(rows.astype(float)) + shift)
    for _ in range(steps):
        correction = x.mean(axis=0) - fit.mean(axis=0)
        fit, result = unit(fit + correction), unit(result + correction)
    return result


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 6])
def test_realign_beside_float64_arithmetic(steps: int) -> None:
    alignment = fitted(ReAlign(centroid_steps=steps)).compile()
    expected = by_hand(raw(0), raw(1), raw(2), True, steps)
    found = alignment.apply(raw(2))
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=1e-7, rtol=2**-11 * 1.001)  # half a unit in the last place
    bfloat = torch.from_numpy(raw(2).astype(np.float32)).bfloat16()
    of_bfloat = by_hand(raw(0), raw(1), bfloat.double().numpy(), True, steps)
    torch.testing.assert_close(
        alignment.apply(bfloat).double(), torch.from_numpy(of_bfloat), atol=1e-7, rtol=2**-8 * 1.001
    )


@pytest.mark.parametrize("alignment", [MeanShift, Unicorn, C3, ReAlign])
def test_as_before_but_for_the_last_place(alignment: type[Alignment]) -> None:
    one = fitted(alignment())
    before = one.apply(raw(2))
    after = one.compile().apply(raw(2))
    np.testing.assert_allclose(after.astype(float), before.astype(float), atol=1e-7, rtol=2**-10 * 1.001)
    assert np.mean(after != before) < 0.01
    if alignment is MeanShift:
        np.testing.assert_allclose(after, by_hand(raw(0), raw(1), raw(2), False, 0), atol=1e-7, rtol=2**-11 * 1.001)


def test_each_result_depends_on_its_row_alone(tmp_path: Path) -> None:
    alignment = fitted(ReAlign()).compile()
    rows = raw(3, 9001)  # three chunks
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = alignment.apply(rows)
        torch.set_num_threads(3)
        np.testing.assert_array_equal(alignment.apply(rows), whole)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(np.concatenate([alignment.apply(rows[i : i + 1]) for i in range(50)]), whole[:50])
    np.testing.assert_array_equal(np.concatenate(list(alignment.apply([rows[:7], rows[7:900]]))), whole[:900])
    np.testing.assert_array_equal(alignment.apply(rows[::-3]), whole[::-3])
    np.testing.assert_array_equal(alignment.apply(np.asfortranarray(rows)), whole)
    np.save(tmp_path / "rows.npy", rows)
    np.testing.assert_array_equal(alignment.apply(np.load(tmp_path / "rows.npy", mmap_mode="r")), whole)
    swapped = alignment.apply(rows[:99].astype(">f2"))
    assert swapped.dtype == np.dtype(">f2")
    np.testing.assert_array_equal(swapped, whole[:99])
    tensor = torch.from_numpy(rows.copy())
    np.testing.assert_array_equal(alignment.apply(tensor.T.contiguous().T).numpy(), whole)
    np.testing.assert_array_equal(tensor.numpy(), rows)  # left as they were
    assert alignment.apply(rows[:0]).shape == (0, DIM)


def test_what_is_not_its_own_goes_on_as_before() -> None:
    plain, compiled = fitted(C3()), fitted(C3()).compile()
    for kind in (np.float32, np.float64):
        np.testing.assert_array_equal(compiled.apply(raw(2).astype(kind)), plain.apply(raw(2).astype(kind)))
    ids = np.arange(COUNT)
    noisy = compiled.apply(raw(2), row_ids=ids, epoch=3)
    np.testing.assert_array_equal(noisy, plain.apply(raw(2), row_ids=ids, epoch=3))
    assert np.abs(noisy - compiled.apply(raw(2))).max() > 0.01
    realign = fitted(ReAlign()).compile()  # draws none: ids change nothing
    np.testing.assert_array_equal(realign.apply(raw(2), row_ids=ids), realign.apply(raw(2)))


def test_rows_whose_squares_leave_float32_are_mapped_as_before() -> None:
    plain, compiled = fitted(MeanShift()), fitted(MeanShift()).compile()
    rows = torch.from_numpy(raw(2).astype(np.float32)).bfloat16()
    rows[5] *= 2.0**90
    rows[6] *= 2.0**-90
    before, after = plain.apply(rows), compiled.apply(rows)
    assert torch.equal(after[5:7], before[5:7])
    torch.testing.assert_close(after, before, atol=1e-6, rtol=2**-7 * 1.001)


def test_near_the_origin_the_rows_are_left_to_the_mapping() -> None:
    direction = raw(2)[7].astype(float)
    shift = direction / np.linalg.norm(direction)
    text = np.stack([shift + 0.01 * np.eye(DIM)[0], shift - 0.01 * np.eye(DIM)[0]])
    image = np.stack([np.eye(DIM)[1] + 0.01 * np.eye(DIM)[2], -np.eye(DIM)[1] + 0.01 * np.eye(DIM)[2]])
    plain, compiled = MeanShift().fit(text, image), MeanShift().fit(text, image).compile()
    rows = raw(2)
    shifted = unit(rows.astype(float)) + plain._vectors["shift"].numpy()
    near = np.linalg.norm(shifted, axis=1) ** 2 < 1e-2 * (1 + float(plain._vectors["shift"].square().sum()))
    assert near[7]
    np.testing.assert_allclose(
        compiled.apply(rows).astype(float), plain.apply(rows).astype(float), atol=1e-6, rtol=2**-10 * 1.001
    )
    np.testing.assert_array_equal(compiled.apply(rows)[near], plain.apply(rows)[near])


@pytest.mark.parametrize(("value", "problem"), [(0.0, "is zero"), (np.nan, "has a NaN"), (np.inf, "has a NaN or inf")])
def test_rows_without_a_direction_are_named(value: float, problem: str) -> None:
    rows = raw(2)
    rows[400] = value
    with pytest.raises(ValueError, match=f"row 400 {problem}"):
        fitted(ReAlign()).compile().apply(rows)
    with pytest.raises(ValueError, match=f"row 901 {problem}"):
        list(fitted(ReAlign()).compile().apply([raw(3), rows]))


def test_compiling_is_undone_by_fitting_and_not_saved(tmp_path: Path) -> None:
    plain, compiled = fitted(ReAlign()), fitted(ReAlign()).compile()
    assert compiled.fingerprint() == plain.fingerprint()
    compiled.save(tmp_path)
    rows = raw(2, 4000)
    before, after = plain.apply(rows), compiled.apply(rows)
    assert (before != after).any()  # else what follows would say nothing
    np.testing.assert_array_equal(copy.deepcopy(compiled).apply(rows), after)
    np.testing.assert_array_equal(load_alignment(tmp_path).apply(rows), before)
    np.testing.assert_array_equal(fitted(compiled).apply(rows), before)


def test_what_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="ReAlign is not fitted"):
        ReAlign().compile()
    with pytest.raises(ValueError, match="Diagonal has no compiled form, since its map is no chain of shifts"):
        fitted(Diagonal()).compile()
    monkeypatch.setattr("revision.alignment.base.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install 'revision-mllm[compiled]'")):
        fitted(ReAlign()).compile()
