"""Moments: exact to float64 whatever the form, the chunks and the number of processes."""

import errno
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from clouds import METHODS, built

from revision.alignment import MeanShift, ResidualNoise, load_alignment
from revision.alignment.moments import Detail, Moments, all_reduce, measure, merge_all
from revision.alignment.rows import read_blocks, to_sphere

COUNT, DIM = 3001, 48


def unit_blocks(source: Any, what: str) -> Iterator[torch.Tensor]:
    """As alignments read a source: blocks float64 [<=b, d] of unit rows."""
    return (block.unit() for block in read_blocks(source, what))


def raw_rows(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Not normalised, anisotropic, far from the origin."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, DIM)) * np.linspace(0.1, 2, DIM) + rng.normal(size=DIM)


def expected(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean and trace of the unit rows in extended precision."""
    wide = rows.astype(np.longdouble)
    unit = wide / np.sqrt((wide**2).sum(axis=1, keepdims=True))
    mean = unit.mean(axis=0)
    return mean.astype(np.float64), float(((unit - mean) ** 2).sum(axis=1).mean())


class FakeStore:
    """The part of an embedding store that fitting reads."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        return (self.rows[start : start + 700] for start in range(0, len(self.rows), 700))

    def fingerprint(self) -> str:
        return "print"


def memory_map(rows: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "rows.npy", rows)
    return np.load(folder / "rows.npy", mmap_mode="r")


SOURCES: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "array": lambda rows, folder: rows,
    "map": memory_map,
    "tensor": lambda rows, folder: torch.from_numpy(rows),
    "chunks": lambda rows, folder: [rows[:1], rows[1:900], torch.from_numpy(rows[900:900]), rows[900:]],
    "store": lambda rows, folder: FakeStore(rows),
    "columns first": lambda rows, folder: np.asfortranarray(rows),
    "backwards": lambda rows, folder: np.ascontiguousarray(rows[::-1])[::-1],
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_mean_and_trace_are_exact(source: str, dtype: Any, tmp_path: Path) -> None:
    rows = raw_rows().astype(dtype)
    before = rows.copy()
    found = measure(unit_blocks(SOURCES[source](rows, tmp_path), "text"))
    mean, trace = expected(rows)
    assert found.count == COUNT and found.dim == DIM
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=0, atol=1e-15)
    assert found.trace == pytest.approx(trace, rel=1e-13)
    np.testing.assert_array_equal(rows, before)


def test_bfloat16_is_exact() -> None:
    rows = torch.from_numpy(raw_rows()).bfloat16()
    found = measure(unit_blocks(rows, "text"))
    mean, trace = expected(rows.double().numpy())
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=0, atol=1e-15)
    assert found.trace == pytest.approx(trace, rel=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_chunks_and_order_do_not_matter(seed: int) -> None:
    rows = raw_rows().astype(np.float32)
    rng = np.random.default_rng(seed)
    borders = np.sort(rng.integers(1, COUNT, size=20))
    whole = measure(unit_blocks(rows, "text"), detail=Detail.COVARIANCE)
    parts = measure(unit_blocks(np.split(rows[rng.permutation(COUNT)], borders), "text"), detail=Detail.COVARIANCE)
    assert parts.count == whole.count
    torch.testing.assert_close(parts.mean, whole.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=0, atol=1e-14)
    assert parts.trace == pytest.approx(whole.trace, rel=1e-12)


def test_blocks_smaller_than_the_source_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = raw_rows()
    whole = measure(unit_blocks(rows, "text"))
    monkeypatch.setattr("revision.alignment.rows.CPU_BLOCK", 7 * DIM * 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    blocks = [block.clone() for block in unit_blocks(rows, "text")]
    assert {len(block) for block in blocks[:-1]} == {7}
    parts = measure(blocks)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=0, atol=1e-14)
    assert parts.trace == pytest.approx(whole.trace, rel=1e-12)


def test_a_narrow_cloud_far_away_keeps_its_digits() -> None:
    """E||e||^2 - ||mean||^2 would be left with two digits here."""
    deviations = np.random.default_rng(0).normal(size=(4000, 8)) * 1e-6
    rows = torch.from_numpy(1.0 + deviations)
    exact = rows.numpy().astype(np.longdouble)
    found = measure(rows.split(100))
    assert found.trace == pytest.approx(float(((exact - exact.mean(axis=0)) ** 2).sum(axis=1).mean()), rel=1e-9)


@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0, 2.0, 2.6, 2.7, 10.0])
def test_trace_is_exact_on_either_side_of_the_quicker_sum(mean: float) -> None:
    """The trace is an eighth of the mean square where the mean is 2.65 deviations from the origin."""
    rows = torch.from_numpy(np.random.default_rng(1).normal(size=(4000, 8)) + mean)
    exact = rows.numpy().astype(np.longdouble)
    found = measure(part.clone() for part in rows.split(100))
    assert found.trace == pytest.approx(float(((exact - exact.mean(axis=0)) ** 2).sum(axis=1).mean()), rel=1e-14)


def test_covariance_is_the_covariance() -> None:
    rows = torch.from_numpy(raw_rows())
    exact = np.cov(rows.numpy().T, bias=True)
    found = measure(rows.split(500), detail=Detail.COVARIANCE)
    np.testing.assert_allclose(found.covariance.numpy(), exact, rtol=1e-10, atol=1e-12)
    assert found.trace == pytest.approx(float(found.covariance.trace()), rel=1e-12)


@pytest.mark.parametrize("detail", [Detail.VARIANCES, Detail.COVARIANCE])
def test_variances_are_the_variances(detail: Detail) -> None:
    rows = torch.from_numpy(raw_rows())
    exact = rows.numpy().var(axis=0)
    found = measure(rows.split(500), detail=detail)
    np.testing.assert_allclose(found.variances.numpy(), exact, rtol=1e-12)
    parts = [Moments.of(part.clone(), detail) for part in torch.from_numpy(raw_rows()).split([1, 2000, 1000])]
    np.testing.assert_allclose(merge_all(parts).variances.numpy(), exact, rtol=1e-12)


def test_detail_must_be_asked_for() -> None:
    with pytest.raises(ValueError, match="these moments hold no trace: take them with detail=Detail.TRACE"):
        _ = merge_all([Moments.of(torch.eye(3, dtype=torch.float64), Detail.MEAN)] * 2).trace
    found = Moments.of(torch.eye(3, dtype=torch.float64), Detail.VARIANCES)
    with pytest.raises(ValueError, match="these moments hold no covariance: take them with detail=Detail.COVARIANCE"):
        _ = found.covariance
    with pytest.raises(ValueError, match="these moments hold no variances: take them with detail=Detail.VARIANCES"):
        _ = found.without_detail().variances


def test_invalid_rows_are_left_out_and_counted() -> None:
    rows = raw_rows(10)
    rows[[0, 4, 9]] = np.array([0, np.nan, np.inf])[:, None]
    counts: list[int] = []
    chunks = [rows[:1], rows[1:6], rows[6:]]
    numbered = [(b.numbers.tolist(), b.unit().clone()) for b in read_blocks(chunks, "text", counts.append)]
    assert counts == [1, 1, 1]
    assert [number for numbers, _ in numbered for number in numbers] == [1, 2, 3, 5, 6, 7, 8]
    kept = rows[[1, 2, 3, 5, 6, 7, 8]]
    expected_rows = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    np.testing.assert_allclose(torch.cat([block for _, block in numbered]), expected_rows, rtol=1e-15)


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[3e200, 4e200], [3e-200, 4e-200]]),
        np.array([[3e30, 4e30], [3e-40, 4e-40]], dtype=np.float32),
        np.array([[3e4, 4e4], [6 * 2.0**-24, 8 * 2.0**-24]], dtype=np.float16),
    ],
    ids=["float64", "float32", "float16"],
)
def test_rows_at_the_ends_of_the_range_are_normalised(rows: np.ndarray) -> None:
    [block] = unit_blocks(rows, "text")
    exact = rows.astype(np.longdouble)
    exact /= np.sqrt((exact**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(block.numpy(), exact.astype(np.float64), rtol=1e-14)


def test_large_rows_do_not_overflow_in_float32() -> None:
    found = to_sphere(torch.tensor([[3e30, 4e30], [1.0, 0.0]]), "rows")
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [1.0, 0.0]]))


@pytest.mark.parametrize(("value", "problem"), [(0.0, "is zero"), (np.nan, "NaN"), (np.inf, "infinite")])
def test_a_bad_row_is_named_by_its_number(value: float, problem: str) -> None:
    rows = raw_rows(10)
    rows[7] = value if value == 0 else rows[7]
    rows[7, 3] = value
    with pytest.raises(ValueError, match=rf"^image row 7 .*{problem}"):
        list(unit_blocks([rows[:5], rows[5:]], "image"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 2), dtype=np.int64), "dtype int64; cast"),
        (np.ones(3), r"shape \(3,\); rows must be \[n, d\]"),
        ([np.ones((2, 3)), np.ones((2, 4))], "row 2 has 4 columns but the rows before it 3"),
        ([[1.0, 2.0]], "is a list; rows must be"),
        (iter([np.ones((2, 3))]), "can be read only once"),
        (5, "is a int; give an array"),
    ],
)
def test_other_things_are_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(unit_blocks(source, "text"))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="text holds no rows"):
        measure(unit_blocks(np.ones((0, 4)), "text"), "text")


def test_without_a_process_group_nothing_is_reduced() -> None:
    state = Moments.of(torch.eye(3, dtype=torch.float64))
    assert all_reduce(state) is state


def test_without_a_process_group_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="^distributed=True merges the shares of a process group, and there is none"):
        MeanShift().fit(raw_rows(), raw_rows(seed=1), distributed=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_torchs_default_dtype_does_not_matter(dtype: torch.dtype, stored: torch.dtype) -> None:
    rows = torch.from_numpy(raw_rows()).to(stored)
    expected = measure(unit_blocks(rows, "text"))
    torch.set_default_dtype(dtype)
    try:
        found = measure(unit_blocks(rows, "text"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.mean, expected.mean) and found.trace == expected.trace


def share(rank: int, rows: np.ndarray) -> np.ndarray:
    return rows[: len(rows) // 3] if rank == 0 else rows[len(rows) // 3 :]


SETTINGS: dict[str, Any] = {"centroid_steps": 2, "jitter": 0.1}
SPOILT = 5  # a row of the second share of the text that holds NaN


def sides() -> tuple[np.ndarray, np.ndarray]:
    return raw_rows(), raw_rows(seed=1) + 1


class Unreadable:
    def __iter__(self) -> Iterator[np.ndarray]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


# What each of two processes holds of text and image, and the sentence that both must then end with.
MIXED, SAME = np.array([[0.6, 0.8], [-0.6, -0.8]]), np.array([[-1.0, 0.0]])
REFUSED: dict[str, tuple[list[Any], list[Any], str]] = {
    "a row": (
        [MIXED, np.array([[1.0, 0.0], [1.0, np.nan]])],
        [SAME, SAME],
        "process 1's text row 1 has a NaN or infinite entry, so it has no direction: remove it or embed it again",
    ),
    "a source": (
        [5, MIXED],
        [SAME, SAME],
        "process 0's text is a int; give an array, a store or an iterable of arrays",
    ),
    "a path": (
        ["/no/such/rows.npy", MIXED],
        [SAME, SAME],
        "process 0: /no/such/rows.npy does not exist: there is no embedding store; run `revision embed` first, or give "
        "embeddings in one of the formats of docs/formats.md",
    ),
    "a failing disk": (
        [MIXED, Unreadable()],
        [SAME, SAME],
        "process 1's text cannot be read: [Errno 5] Input/output error",
    ),
    "no rows": ([MIXED[:0], []], [SAME, SAME], "text holds no rows in any process; statistics need at least two"),
    "widths": (
        [MIXED, MIXED],
        [SAME, np.ones((2, 3))],
        "process 1's image has 3 columns but process 0's 2: embed both with one encoder",
    ),
    "a later pass": (
        [MIXED, np.array([[-1.0, 0.0], [1.0, 0.0]])],
        [SAME, SAME],
        "process 1's text row 1 is mapped onto the zero vector, which has no direction: choose another alignment",
    ),
}


def work(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    text, image = sides()
    for detail in Detail:
        found = all_reduce(measure(unit_blocks(share(rank, text), "text"), detail=detail))
        if detail >= Detail.VARIANCES:
            second = found.variances if detail is Detail.VARIANCES else found.covariance
            np.save(Path(folder) / f"{detail.name}{rank}.npy", second.numpy())
    for method in METHODS:
        alignment = built(method, **SETTINGS)
        alignment.fit(share(rank, text), share(rank, image), distributed=True)
        alignment.save(Path(folder) / method / f"rank{rank}")
        own: tuple[Any, Any] = (text[:0], image) if rank == 0 else (text, [])
        built(method, **SETTINGS).fit(*own, distributed=True).save(Path(folder) / "empty" / method / f"rank{rank}")
    for name, (texts, images, _) in REFUSED.items():
        with pytest.raises(ValueError) as caught:
            MeanShift().fit(texts[rank], images[rank], distributed=True)
        (Path(folder) / f"{name} {rank}.txt").write_text(str(caught.value))
    text[COUNT // 3 + SPOILT] = np.nan
    alignment = ResidualNoise().fit(share(rank, text), share(rank, image), distributed=True, skip_invalid=True)
    alignment.save(Path(folder) / "spoilt" / f"rank{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes with a third and two thirds of the rows have found."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return folder


def test_two_processes_measure_as_one(together: Path) -> None:
    whole = measure(unit_blocks(sides()[0], "text"), detail=Detail.COVARIANCE)
    for rank in (0, 1):
        for detail, expected_second in ((Detail.VARIANCES, whole.variances), (Detail.COVARIANCE, whole.covariance)):
            found = np.load(together / f"{detail.name}{rank}.npy")
            np.testing.assert_allclose(found, expected_second.numpy(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_fit_as_one(method: str, together: Path) -> None:
    files = [sorted(path.read_bytes() for path in (together / method / f"rank{rank}").iterdir()) for rank in (0, 1)]
    assert files[0] == files[1]
    text, image = sides()
    alone = built(method, **SETTINGS).fit(text, image)
    found = load_alignment(together / method / "rank0")
    assert found.statistics.text.count == COUNT
    for ids in (None, range(COUNT)):
        expected_rows = alone.apply(text, row_ids=ids, epoch=1)
        tolerance = 1e-10 if method == "quantile" else 1e-12
        np.testing.assert_allclose(found.apply(text, row_ids=ids, epoch=1), expected_rows, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_share_counts_for_nothing(method: str, together: Path) -> None:
    paths = [together / "empty" / method / f"rank{rank}" for rank in (0, 1)]
    files = [sorted(file.read_bytes() for file in path.iterdir()) for path in paths]
    assert files[0] == files[1]
    text, image = sides()
    alone, found = built(method, **SETTINGS).fit(text, image), load_alignment(paths[0])
    assert found.facts() == alone.facts()
    for ids in (None, range(COUNT)):
        np.testing.assert_array_equal(found.apply(text, row_ids=ids, epoch=1), alone.apply(text, row_ids=ids, epoch=1))


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_process_refuses_all_refuse(name: str, together: Path) -> None:
    for rank in (0, 1):
        assert (together / f"{name} {rank}.txt").read_text() == REFUSED[name][2]


def test_moments_of_three_processes_two_of_them_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Moments(0, torch.zeros(4, dtype=torch.float64), 0.0)
    own = measure(unit_blocks(raw_rows()[:, :4], "text"))
    packed = [
        torch.cat([torch.tensor([state.count, state.scatter], dtype=torch.float64), state.mean])
        for state in (nothing, nothing, own)
    ]
    monkeypatch.setattr("revision.alignment.moments.dist.is_initialized", lambda: True)
    monkeypatch.setattr("revision.alignment.moments.all_gather", lambda tensor: packed)
    found = all_reduce(nothing)
    assert (found.count, found.scatter) == (own.count, own.scatter) and torch.equal(found.mean, own.mean)


def test_two_processes_skip_and_count_as_one(together: Path) -> None:
    text, image = sides()
    text[COUNT // 3 + SPOILT] = np.nan
    alone = ResidualNoise().fit(text, image, skip_invalid=True)
    for rank in (0, 1):
        found = load_alignment(together / "spoilt" / f"rank{rank}")
        assert (found.statistics.text.count, found.statistics.text_skipped) == (COUNT - 1, 1)
        np.testing.assert_allclose(
            found.apply(image, row_ids=range(COUNT)), alone.apply(image, row_ids=range(COUNT)), rtol=0, atol=1e-12
        )
