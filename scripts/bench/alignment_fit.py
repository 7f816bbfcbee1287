"""What fitting ReAlign costs, each number against its limit.

python scripts/bench/alignment_fit.py [--quick] [--folder DIR]

1  rows in a memory map: time beside sums over the same bytes in as many passes, numpy's own on as many threads and the
   quickest that we know (block by block through float32), and memory above the map
2  the same statistics the plain way, in whole arrays, as a script of an evening has them
3  time and memory as rows grow, of rows that are made while they are read
4  two processes beside one
5  on a GPU, where there is one, beside copying the rows there

The map needs 5 GB in DIR (a temporary folder unless told); --quick makes everything smaller by a factor of 50.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from measuring import PeakMemory, anonymous, conclude, report, seconds, unit_rows, write_rows

from revision import ReAlign
from revision.progress import say

DIM = 1280
PASSES = "text, image, and the text twice more: for mu' and for the gap that is left"
GIB = 2**30


def quickest_sum(rows: np.ndarray, block: int = 400) -> torch.Tensor:
    """Column sums, float32 [d]: blocks that stay in a core's cache, each made float32 first.

    One call, `sum(dim=0, dtype=float32)`, would make a float32 copy of all rows; numpy's takes no vector instructions.
    """
    source, total = torch.from_numpy(rows), torch.zeros(rows.shape[1])
    for start in range(0, len(rows), block):
        total += source[start : start + block].float().sum(dim=0)
    return total


def plain_sum(rows: np.ndarray) -> np.ndarray:
    """Column sums by numpy, float32 [d], of a share of the rows a thread."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda share: share.sum(axis=0, dtype=np.float32), np.array_split(rows, threads)))


def from_a_map(text: np.ndarray, image: np.ndarray) -> None:
    """Fit beside sums that read the same bytes as often."""
    passes = (text, image, text, text)
    alignment = ReAlign()
    plain = seconds(lambda: [plain_sum(rows) for rows in passes], repeats=4)
    quickest = seconds(lambda: [quickest_sum(rows) for rows in passes], repeats=4)
    with PeakMemory() as memory:
        fit = seconds(lambda: alignment.fit(text, image), repeats=4)
    say(f"{len(text):,} rows of {DIM} float16 a side from a map; {PASSES}; {torch.get_num_threads()} thread(s)")
    report("fit", fit, "s")
    report("fit / numpy's sums over the same bytes", fit / plain, "", most=2)
    report("fit / the quickest sums over them", fit / quickest, "")
    report("memory above the map", memory.bytes / GIB, "GiB", most=1)


def in_whole_arrays(text: np.ndarray, image: np.ndarray) -> np.ndarray:
    """ReAlign as scripts have it: a list of vectors a side, float64 copies for each step, and the aligned rows."""
    sides = [np.stack([np.asarray(row, dtype=np.float32) for row in rows]) for rows in (text, image)]
    text64, image64 = (rows.astype(np.float64) for rows in sides)
    text64, image64 = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (text64, image64))
    centred = [rows - rows.mean(axis=0) for rows in (text64, image64)]
    of_text, of_image = (float(np.mean(np.sum(rows**2, axis=1))) for rows in centred)
    moved = centred[0] * np.sqrt(of_image / of_text) + image64.mean(axis=0)
    moved = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    moved = moved - moved.mean(axis=0) + image64.mean(axis=0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def beside_whole_arrays(text: np.ndarray, image: np.ndarray) -> None:
    """The baseline, its memory, and what it gives; the limit of any gain is what reading the bytes takes."""
    with PeakMemory() as memory:
        plain = seconds(lambda: in_whole_arrays(text, image), repeats=1)
    with PeakMemory() as ours:
        fit = seconds(lambda: ReAlign().fit(text, image, measure_gap=False), repeats=4)
    bound = seconds(lambda: [quickest_sum(rows) for rows in (text, image, text)])
    some = slice(0, 200)
    apart = np.abs(ReAlign().fit(text, image).apply(text[some].astype(np.float64)) - in_whole_arrays(text, image)[some])
    say(f"{len(text):,} rows of {DIM} a side in whole arrays, as a script would")
    report("largest difference of an aligned coordinate", float(apart.max()), "", most=1e-9)
    report("whole arrays: time", plain, "s")
    report("whole arrays: memory", memory.bytes / GIB, "GiB")
    report("time of whole arrays / time of fit", plain / fit, "", least=100)
    report("the most that it could be: / time of reading the bytes thrice", plain / bound, "")
    report("memory of whole arrays / memory of fit", memory.bytes / max(1, ours.bytes), "")


class Made:
    """Rows that are made when they are read: one block, with another sign pattern each time."""

    def __init__(self, count: int, dim: int, seed: int, block: int = 8192) -> None:
        self.count, self.block = count, block
        self._rows = unit_rows(min(count, block), dim, seed)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, self.count, self.block):
            rows = self._rows[: min(self.block, self.count - start)].copy()
            rows[start // self.block % len(rows)] *= -1
            yield rows


def as_rows_grow(counts: list[int], dim: int) -> None:
    """Seconds a million rows, and memory, from few rows to many."""
    costs = []
    say(f"rows of {dim} that are made while they are read")
    for count in counts:
        text, image, before = Made(count, dim, 0), Made(count, dim, 1), anonymous()
        with PeakMemory() as memory:
            spent = seconds(partial(ReAlign().fit, text, image, measure_gap=False), repeats=3)
        costs.append(spent / count * 1e6)
        report(f"{count:,} rows a side: seconds a million", costs[-1], "s")
        report(f"{count:,} rows a side: memory, and what is left of it", memory.bytes / GIB, "GiB", most=1)
        assert anonymous() - before < GIB, "memory is given back"
    report("cost of a row, most rows / the least of fewer", costs[-1] / min(costs[:-1]), "", most=1.25)


def share_of_a_process(rank: int, world: int, text: str, image: str, rendezvous: str, answer: str) -> None:
    """Fits on one process's share a few times and leaves the fastest time of the slowest process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    maps = [np.load(path, mmap_mode="c") for path in (text, image)]
    shares = [rows[len(rows) * rank // world : len(rows) * (rank + 1) // world] for rows in maps]
    ReAlign().fit(*(rows[:1000] for rows in shares), distributed=True)
    dist.barrier()

    def together() -> None:
        """Until the last has done."""
        ReAlign().fit(*shares, distributed=True)
        dist.barrier()

    spent = seconds(together, repeats=4)
    if rank == 0:
        Path(answer).write_text(str(spent))
    dist.destroy_process_group()


def two_processes(folder: Path) -> None:
    """One thread each."""
    times = []
    for world in (1, 2):
        answer = folder / f"seconds-{world}"
        arguments = (world, str(folder / "text.npy"), str(folder / "image.npy"), str(folder / f"meet-{world}"))
        torch.multiprocessing.spawn(share_of_a_process, args=(*arguments, str(answer)), nprocs=world)
        times.append(float(answer.read_text()))
    say("the same map, one thread a process")
    report("time of one process / time of two", times[0] / times[1], "", least=1.7)


def on_a_gpu(count: int) -> None:
    """Rows that lie there; a copy reads and writes them, a fit reads them thrice."""
    if not torch.cuda.is_available():
        say("no GPU here: its copy bandwidth is not measured against")
        return
    text, image = (torch.from_numpy(unit_rows(count, DIM, seed)).cuda() for seed in (0, 1))

    def timed(work: Callable[[], object]) -> float:
        """Seconds on the device."""

        def done() -> None:
            """Waits for the device."""
            work()
            torch.cuda.synchronize()

        return seconds(done, repeats=5)

    copied = timed(text.clone)
    fit = timed(lambda: ReAlign().fit(text, image, measure_gap=False))
    say(f"{count:,} rows of {DIM} float16 a side on {torch.cuda.get_device_name()}; three passes")
    report("fit", fit, "s")
    report("share of the bandwidth of a copy", 100 * (3 / fit) / (2 / copied), "%")


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the rows")
    parser.add_argument("--folder", type=Path, help="where the map is made; it is deleted again")
    options = parser.parse_args()
    factor = 50 if options.quick else 1
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        count = 1_000_000 // factor
        text, image = (
            write_rows(folder / f"{side}.npy", count, DIM, seed) for seed, side in enumerate(("text", "image"))
        )
        from_a_map(text, image)
        two_processes(folder)
    beside_whole_arrays(*(unit_rows(200_000 // factor, DIM, seed) for seed in (0, 1)))
    on_a_gpu(1_000_000 // factor)
    as_rows_grow([5_000, 20_000, 100_000] if options.quick else [10_000, 100_000, 1_000_000, 4_000_000], 256)


if __name__ == "__main__":
    main()
    conclude()
