"""The fixed frame of training: each quantity against a few lines of other arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip import ClipLoss

from revision.geometry import frame, measures
from revision.geometry.frame_plot import draw_frame, save_frame_figure
from revision.geometry.frame_trace import FrameTrace, read_trace

COUNT, DIM = 60, 7


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def cloud(seed: int, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of unit rows: what both sides share, an offset of each side, and noise, with spectra that fall."""
    rng = np.random.default_rng(seed)
    widths = np.linspace(1.0, 0.1, DIM)
    shared = rng.normal(size=(count, DIM)) * widths
    offset = rng.normal(size=DIM)
    images = unit(shared + offset + 0.3 * rng.normal(size=(count, DIM)) * widths)
    return images, unit(shared - offset + 0.3 * rng.normal(size=(count, DIM)) * widths)


def sine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the largest principal angle, whose cosine is the smallest singular value of a'b."""
    return math.sqrt(1 - np.linalg.svd(a.T @ b)[1].min() ** 2)


def test_frame_holds_the_energy_asked_for() -> None:
    images, texts = cloud(0)
    sigma = np.cov(images.T, bias=True) + np.cov(texts.T, bias=True)
    for energy in (0.3, 0.7, 0.95):
        fixed = frame.fit_frame(images, texts, energy)
        both = np.hstack([fixed.u, fixed.v])
        np.testing.assert_allclose(both.T @ both, np.eye(DIM), atol=1e-12)
        held = np.trace(fixed.u.T @ sigma @ fixed.u) / np.trace(sigma)
        assert held == pytest.approx(fixed.energy) and held >= energy
        largest_first = np.sort(np.linalg.eigvalsh(sigma))[::-1]
        rank = fixed.u.shape[1]
        assert largest_first[: rank - 1].sum() / largest_first.sum() < energy
        assert held == pytest.approx(largest_first[:rank].sum() / largest_first.sum())
    assert frame.fit_frame(images, texts, 1 - 1e-12).u.shape == (DIM, DIM - 1), "V is never empty"


def test_frame_of_rows_that_do_not_vary() -> None:
    same = np.tile(unit(np.ones((1, 4))), (5, 1))
    with pytest.raises(ValueError, match="a frame needs embeddings of at least 2 coordinates that differ"):
        frame.fit_frame(same, same, 0.9)


def test_parts_add_up_to_the_gap() -> None:
    images, texts = cloud(1)
    fixed = frame.fit_frame(images, texts, 0.8)
    parts = frame.decompose(images, texts, fixed)
    bias = fixed.u @ parts.beta + fixed.v @ parts.gamma
    np.testing.assert_allclose(bias, images.mean(axis=0) - texts.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(bias + parts.delta @ fixed.u.T + parts.zeta @ fixed.v.T, images - texts, atol=1e-14)
    assert abs(parts.delta.mean(axis=0)).max() < 1e-14 and abs(parts.zeta.mean(axis=0)).max() < 1e-14


def test_sine_is_that_of_the_largest_principal_angle() -> None:
    rng = np.random.default_rng(0)
    images, texts = cloud(2)
    fixed = frame.fit_frame(images, texts, 0.7)
    rank = fixed.u.shape[1]
    assert frame.sine_of_largest_angle(fixed.u, fixed) == pytest.approx(0, abs=1e-14)
    other = np.linalg.qr(fixed.u + 0.2 * rng.normal(size=(DIM, rank)))[0]
    expected = sine(other, fixed.u)
    assert frame.sine_of_largest_angle(other, fixed) == pytest.approx(expected, rel=1e-10)
    inside = other @ rng.normal(size=(rank, 500))
    shares = np.linalg.norm(fixed.v.T @ inside, axis=0) / np.linalg.norm(inside, axis=0)
    assert shares.max() <= expected, "the bound of ReVision v3, Sec. 3"
    assert frame.share_outside(inside.T, fixed.v) <= expected  # type: ignore[operator]


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_gradients_are_those_of_the_loss(scale: float) -> None:
    images, texts = (torch.from_numpy(rows[:9].copy()).requires_grad_() for rows in cloud(3))
    ClipLoss()(images, texts, scale).backward()
    by_image, by_text = frame.contrastive_gradients(images.detach().numpy(), texts.detach().numpy(), scale)
    assert images.grad is not None and texts.grad is not None
    np.testing.assert_allclose(by_image, images.grad.numpy(), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(by_text, texts.grad.numpy(), rtol=1e-9, atol=1e-14)


def test_share_outside() -> None:
    rows = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 5.0]])
    assert frame.share_outside(rows, np.eye(3)[:, 1:]) == pytest.approx(math.sqrt((16 + 25) / 50))
    assert frame.share_outside(np.zeros((2, 3)), np.eye(3)[:, 1:]) is None


def test_condition_number() -> None:
    def condition(rows: np.ndarray) -> float | None:
        return frame.Spread.of(rows).condition_number

    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T  # covariance: the identity
    assert condition(signs * [4.0, 2.0, 1.0]) == pytest.approx(16)
    assert condition(signs * [4.0, 2.0, 0.0]) == pytest.approx(4), "a direction without variance"
    two = np.array([[1.0, 2.0, 3.0], [2.0, 5.0, 1.0], [0.0, 1.0, 1.0]])
    largest, second, _ = np.linalg.svd(two - two.mean(axis=0))[1] ** 2
    assert condition(two) == pytest.approx(largest / second), "three rows span a plane"
    assert condition(np.ones((4, 3))) is None
    thin = signs * [1.0, 1e-6, 0.0]
    many = np.tile(thin, (3000, 1))  # what counts as zero depends on the directions, not on the rows
    assert condition(many) == pytest.approx(condition(thin), rel=1e-3)
    assert measures.condition_number(measures.spectrum(many)) == pytest.approx(condition(many))


def test_eigenvalue_correlation() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    first, second = np.array([9.0, 4.0, 2.0, 1.0]), np.array([5.0, 3.0, 3.0, 0.5])
    found = frame.eigenvalue_correlation(np.diag(first), turn @ np.diag(second) @ turn.T)
    assert found == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert frame.eigenvalue_correlation(np.eye(4), np.diag(first)) is None
    assert frame.eigenvalue_correlation(np.eye(2), np.diag([1.0, 2.0])) is None


def test_angle_to_the_first_axis() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 3)) * [5.0, 1.0, 1.0]
    for angle in (0.0, 30.0, 90.0):
        radians = math.radians(angle)
        bias = np.array([-math.cos(radians), math.sin(radians), 0.0])
        assert frame.Spread.of(rows).angle_to_first_axis(bias) == pytest.approx(angle, abs=1.5)
    assert frame.Spread.of(rows).angle_to_first_axis(np.zeros(3)) is None


def test_trace_of_a_cloud_that_stays(tmp_path: Path) -> None:
    images, texts = cloud(4)
    trace = FrameTrace(tmp_path / "trace.jsonl", batches=[np.arange(20), np.arange(20, 40)], energy=0.8)
    first = trace.record(100, images, texts, 20.0)
    second = trace.record(120, images, texts, 20.0)
    assert first["stability"] is None and second["stability"] == pytest.approx(1)
    assert second["drift"] == 0 and second["sin_theta"] == pytest.approx(0, abs=1e-7)
    assert second["leak"] == pytest.approx(second["leak_present"])
    assert {key: value for key, value in second.items() if key not in ("step", "stability")} == {
        key: value for key, value in first.items() if key not in ("step", "stability")
    }
    assert read_trace(tmp_path / "trace.jsonl") == [first, second]


def test_trace_of_a_cloud_that_moves(tmp_path: Path) -> None:
    """Every number of a line, again from the definitions in other words."""
    before, (images, texts) = cloud(5), cloud(6)
    batches = [np.arange(30), np.arange(30, 50)]
    trace = FrameTrace(tmp_path / "trace.jsonl", batches=batches, energy=0.8)
    trace.record(0, *before, 20.0)
    line = trace.record(20, images, texts, 50.0)

    values, vectors = np.linalg.eigh(sum(np.cov(side.T, bias=True) for side in before))
    share = np.cumsum(values[::-1]) / values.sum()
    rank = int((share < 0.8).sum()) + 1
    u = vectors[:, -rank:]
    inside, outside = u @ u.T, np.eye(DIM) - u @ u.T
    sigma = np.cov(images.T, bias=True) + np.cov(texts.T, bias=True)
    now = np.linalg.eigh(sigma)[1][:, -rank:]
    gaps = images - texts
    mean = gaps.mean(axis=0)
    gammas = [outside @ (x - y).mean(axis=0) for x, y in (before, (images, texts))]
    lengths = [np.linalg.norm(gamma) for gamma in gammas]
    gradients: list[np.ndarray] = []
    for batch in batches:
        x, y = (torch.from_numpy(side[batch]).requires_grad_() for side in (images, texts))
        ClipLoss()(x, y, 50.0).backward()
        gradients.append(np.stack([x.grad.numpy(), y.grad.numpy()]))  # type: ignore[union-attr]
    both = np.concatenate(gradients, axis=1)
    steering = sum(np.cov(side.T, bias=True) for side in both)
    in_u = np.sort(np.linalg.eigvalsh(inside @ np.cov(gaps.T, bias=True) @ inside))[-rank:]
    in_v, axes = np.linalg.eigh(outside @ np.cov(gaps.T, bias=True) @ outside)
    expected = {
        "step": 20,
        "rank": rank,
        "energy": np.trace(inside @ sigma) / np.trace(sigma),
        "gap": np.linalg.norm(mean),
        "beta": np.linalg.norm(inside @ mean),
        "gamma": lengths[1],
        "leak": np.linalg.norm(both @ outside) / np.linalg.norm(both),
        "sin_theta": sine(now, u),
        "leak_present": np.linalg.norm(both @ (np.eye(DIM) - now @ now.T)) / np.linalg.norm(both),
        "stability": gammas[0] @ gammas[1] / (lengths[0] * lengths[1]),
        "drift": np.linalg.norm(gammas[1] - gammas[0]) / lengths[0],
        "condition_u": in_u[-1] / in_u[0],
        "rho_eig": np.corrcoef(in_u, np.sort(np.linalg.eigvalsh(inside @ steering @ inside))[-rank:])[0, 1],
        "condition_v": in_v[-1] / in_v[rank],
        "gamma_angle": math.degrees(math.acos(abs(axes[:, -1] @ gammas[1]) / lengths[1])),
    }
    assert rank < DIM - 1 and line == pytest.approx(expected)
    assert line["leak"] <= line["leak_present"] + line["sin_theta"]  # type: ignore[operator]


def test_what_is_undefined_is_null(tmp_path: Path) -> None:
    """A V of one axis in which nothing lies: JSON has no NaN."""
    flat = np.random.default_rng(0).normal(size=(20, 3))
    flat[:, 2] = 0
    trace = FrameTrace(tmp_path / "trace.jsonl", batches=[np.arange(20)], energy=0.999999)
    line = trace.record(1, unit(flat), unit(flat[:, [1, 0, 2]]), 10.0)
    assert line["condition_v"] is None and line["gamma_angle"] is None and line["rank"] == 2
    assert "NaN" not in (tmp_path / "trace.jsonl").read_text()


def test_a_trace_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trace .*trace.jsonl does not exist: run `revision contrast` first"):
        read_trace(tmp_path / "trace.jsonl")
    (tmp_path / "trace.jsonl").write_text(json.dumps({"step": 1})[:-1])
    with pytest.raises(ValueError, match=r"is not a trace .*run `revision contrast` again"):
        read_trace(tmp_path / "trace.jsonl")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda line: None, r"line 2: it must be a mapping"),
        (lambda line: {"step": 1}, r"line 2: rank must be a number"),
        (lambda line: {**line, "rank": None}, r"line 2: rank must be a number"),
        (lambda line: {**line, "drift": "x"}, r"line 2: drift must be a number"),
        (
            lambda line: {name: value for name, value in line.items() if name != "leak"},
            r"line 2: leak must be a number",
        ),
    ],
)
def test_a_line_that_is_no_measurement(change: Callable[[Any], Any], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    line = FrameTrace(file, batches=[np.arange(30)], energy=0.8).record(20, *cloud(1), 20.0)
    file.write_text(f"{json.dumps(line)}\n{json.dumps(change(line))}\n")
    with pytest.raises(ValueError, match=rf"trace.jsonl is not a trace \({sentence}\): run `revision contrast` again"):
        read_trace(file)
    file.write_text("")
    with pytest.raises(ValueError, match=r"trace.jsonl is not a trace \(it has no line\)"):
        read_trace(file)


def test_figure_has_a_curve_of_each_quantity(tmp_path: Path) -> None:
    trace = FrameTrace(tmp_path / "trace.jsonl", batches=[np.arange(30)], energy=0.8)
    lines = [trace.record(20 * number, *cloud(number), 20.0) for number in range(4)]
    figure = draw_frame(lines)
    curves = [curve for axis in figure.axes for curve in axis.lines]
    assert len(figure.axes) == 7 and len(curves) == 9
    shown = {tuple(np.nan_to_num(np.asarray(curve.get_ydata(), dtype=float), nan=-9)) for curve in curves}
    names = (
        "leak",
        "leak_present",
        "sin_theta",
        "stability",
        "drift",
        "condition_u",
        "rho_eig",
        "condition_v",
        "gamma_angle",
    )
    assert shown == {tuple(-9 if line[name] is None else line[name] for line in lines) for name in names}
    save_frame_figure(lines, tmp_path / "frame.png")
    assert (tmp_path / "frame.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.filterwarnings("error")
def test_figure_of_one_line_with_nothing_defined(tmp_path: Path) -> None:
    flat = np.random.default_rng(0).normal(size=(20, 3))
    flat[:, 2] = 0
    trace = FrameTrace(tmp_path / "trace.jsonl", batches=[np.arange(20)], energy=0.999999)
    save_frame_figure([trace.record(1, unit(flat), unit(flat[:, [1, 0, 2]]), 10.0)], tmp_path / "frame.png")
    assert (tmp_path / "frame.png").is_file()
