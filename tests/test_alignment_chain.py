"""The mean of mapped rows by a chain's factors, beside the mapped rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from revision import ReAlign
from revision.alignment.base import Alignment
from revision.alignment.chain import Chain
from revision.alignment.methods.mean_shift import MeanShift
from revision.alignment.methods.unicorn import Unicorn
from revision.alignment.moments import Moments

DIM, COUNT = 24, 301


def raw(seed: int, spread: float = 0.6) -> np.ndarray:
    """Rows of many lengths about a mean of their own, float64 [COUNT, DIM]."""
    rng = np.random.default_rng(seed)
    rows = np.eye(DIM)[seed] + spread * rng.standard_normal((COUNT, DIM)) / np.sqrt(DIM)
    return rows * rng.uniform(0.1, 30.0, (COUNT, 1))


def unit(rows: np.ndarray) -> np.ndarray:
    """Each row over its norm."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 0.83])
def test_mean_is_that_of_the_mapped_rows(steps: int, scale: float) -> None:
    rng = np.random.default_rng(7)
    vectors = 0.2 * rng.standard_normal((steps + 1, DIM))
    rows = raw(0)
    mapped = scale * unit(rows) + vectors[0]
    for vector in vectors[1:]:
        mapped = unit(mapped) + vector
    given = torch.from_numpy(rows.copy())
    norms = torch.from_numpy(np.linalg.norm(rows, axis=1, keepdims=True))
    found = Chain(scale, torch.from_numpy(vectors)).mean(given, norms)
    assert found is not None
    np.testing.assert_allclose(found.numpy(), unit(mapped).mean(axis=0), atol=1e-14)
    np.testing.assert_array_equal(given.numpy(), rows)  # left as they were


def test_no_mean_where_digits_would_be_lost() -> None:
    rows = torch.from_numpy(unit(raw(0)))
    norms = torch.ones(COUNT, 1, dtype=torch.float64)
    near = Chain(1.0, -(rows[17] * (1 - 1e-3))[None])  # row 17 ends a thousandth from the origin
    assert near.mean(rows, norms) is None
    assert Chain(1.0, -(rows[17] * 0.5)[None]).mean(rows, norms) is not None


@pytest.mark.parametrize("alignment", [MeanShift, Unicorn, ReAlign])
def test_blocks_that_come_near_the_origin_are_mapped(
    alignment: type[Alignment], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = alignment().fit(raw(1), raw(2))
    refused = []

    def refuse(chain: Chain, rows: torch.Tensor, norms: torch.Tensor) -> None:
        refused.append(len(rows))

    monkeypatch.setattr(Chain, "mean", refuse)
    mapped = alignment().fit(raw(1), raw(2))
    assert sum(refused) >= COUNT
    assert quick.statistics.gap_after == pytest.approx(mapped.statistics.gap_after, abs=1e-14)
    np.testing.assert_allclose(quick.apply(raw(3)), mapped.apply(raw(3)), atol=1e-14)


def test_corrections_and_gap_of_realign_beside_plain_arithmetic() -> None:
    text, image = raw(4), raw(5)
    fitted = ReAlign(centroid_steps=2).fit(text, image)
    y, x = unit(text), unit(image)
    trace = [np.square(side - side.mean(axis=0)).sum(axis=1).mean() for side in (y, x)]
    mapped = unit(x.mean(axis=0) + np.sqrt(trace[1] / trace[0]) * (y - y.mean(axis=0)))
    for _ in range(2):
        mapped = unit(mapped - mapped.mean(axis=0) + x.mean(axis=0))
    gap = np.linalg.norm(mapped.mean(axis=0) - x.mean(axis=0))
    assert fitted.statistics.gap_after == pytest.approx(gap, abs=1e-14)
    np.testing.assert_allclose(fitted.apply(text), mapped, atol=1e-14)


@pytest.mark.parametrize("spread", [2.0, 0.6, 1e-5])
def test_moments_of_directions(spread: float) -> None:
    rows = raw(6, spread)
    found = Moments.of_directions(
        torch.from_numpy(rows.copy()), torch.from_numpy(np.linalg.norm(rows, axis=1, keepdims=True))
    )
    expected = unit(rows)
    scatter = np.square(expected - expected.mean(axis=0)).sum()
    np.testing.assert_allclose(found.mean.numpy(), expected.mean(axis=0), atol=1e-15)
    assert found.count == COUNT
    assert found.scatter == pytest.approx(scatter, rel=1e-10 if spread == 1e-5 else 1e-13)
