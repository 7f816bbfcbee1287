"""What the measurements share: times, memory, made-up rows, and a line that holds a number against its limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from revision.data.rows import Rows
from revision.precision import computing_dtype
from revision.progress import say


def frozen_dtype() -> torch.dtype:
    """Of a frozen LLM, as a stage with `bf16=auto` would have it here."""
    here = torch.accelerator.current_accelerator()
    return computing_dtype(torch.bfloat16, torch.device("cpu") if here is None else here)


def seconds(work: Callable[[], Any], repeats: int = 2) -> float:
    """The fastest of a few runs, so that first touches of memory do not count."""

    def once() -> float:
        """Seconds of one run."""
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(repeats))


def unit_rows(count: int, dim: int, seed: int) -> np.ndarray:
    """float16 [count, dim] on the sphere, around a mean of their own, as one side of the modality gap."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dim), dtype=np.float32) + rng.standard_normal(dim, dtype=np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def write_rows(path: Path, count: int, dim: int, seed: int, block: int = 65536) -> np.ndarray:
    """`unit_rows`, blocks of which repeat, as a `.npy` file that is made in constant memory; gives its memory map."""
    file = np.lib.format.open_memmap(path, "w+", np.float16, (count, dim))
    rows = unit_rows(min(count, block), dim, seed)
    for start in range(0, count, block):
        file[start : start + block] = rows[: min(block, count - start)]
    file.flush()
    return np.load(path, mmap_mode="c")


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/self/status has no RssAnon; memory is measured on Linux only")


class PeakMemory:
    """The most bytes without a file behind them that a block of code had above what it began with."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._before = anonymous()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, anonymous() - self._before)


class RandomRows(Rows):
    """Unit rows of no meaning: speed does not depend on them."""

    def __init__(self, dim: int, count: int = 64) -> None:
        rows = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
        self._rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def set_epoch(self, epoch: int) -> None:
        """There is no noise."""

    def __getitem__(self, row: int) -> torch.Tensor:
        return self._rows[row % len(self._rows)]


MISSED: list[str] = []


def conclude() -> None:
    """Ends a script: with exit code 1 where a limit was not reached."""
    if MISSED:
        raise SystemExit(f"not reached: {'; '.join(MISSED)}")


def report(what: str, value: float, unit: str, *, most: float | None = None, least: float | None = None) -> None:
    """One line: what was measured, its value, its limit, and whether it keeps to it."""
    limit = (
        "" if most is None and least is None else f"   limit {'<=' if most is not None else '>='} {most or least:,g}"
    )
    kept = (most is None or value <= most) and (least is None or value >= least)
    MISSED.extend([] if kept else [what])
    say(f"{what:64} {value:12,.3g} {unit:8}{limit}{'' if kept else '   NOT REACHED'}")
