"""Files decoded ahead of the encoder, by processes of their own.

The consumer never waits for a picture as long as the processes keep up, and no file, not even one that ends the process
that reads it, takes more than itself with it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context

import torch

from revision.cores import usable_cores
from revision.pictures import OpenFile, Picture, Pixels, Preprocess, open_picture, read_pixels

# Decoding processes that are started unasked: each has its own copy of torch in memory, and some feed any GPU.
MOST_WORKERS = 16


def decoding_workers(asked: int | None, *, gpu: bool) -> int:
    """How many processes decode pictures for one process that encodes them.

    Args:
        asked: as configured; a number stays as it is. None: beside a GPU, this process's share of the CPU cores less
            the one that feeds the GPU, between 1 and `MOST_WORKERS`; beside an encoder that computes on the cores, 0.
        gpu: whether the encoder computes elsewhere than on the CPU.
    """
    if asked is not None:
        return asked
    if not gpu:
        return 0
    share = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(share - 1, 1), MOST_WORKERS)


def read_pixel_batches(
    batches: Iterable[Sequence[Picture]], preprocess: Preprocess, *, workers: int, open_file: OpenFile = open_picture
) -> Generator[Pixels, None, None]:
    """Yields `read_pixels` of every batch, in order, decoded ahead of the consumer by `workers` processes.

    The result does not depend on the number of workers; 0 decodes in this process. At most two batches a worker wait
    in memory, with the bytes that they come from. A file that ends the process that reads it (in practice: memory runs
    out) becomes a reason, as an unreadable one does.

    Raises:
        ValueError: processes do not start; or one died, but no file ends a process that reads it alone.
    """
    read = partial(read_pixels, preprocess=preprocess, open_file=open_file)
    if workers == 0:
        yield from map(read, batches)
        return
    stream, unread = iter(batches), deque[Sequence[Picture]]()
    while True:
        try:
            yield from _read_ahead(unread, stream, read, workers)
            return
        except BrokenProcessPool:
            culprits = 0
        while unread and not culprits:  # nobody says which file it was
            pixels, culprits = _read_one_by_one(unread.popleft(), read)
            yield pixels
        if not culprits:
            raise ValueError(
                "a process that decodes files died, but each of its files can be read alone; memory may be short with "
                f"workers={workers}: use fewer"
            )


def _read_ahead(
    unread: deque[Sequence[Picture]],
    stream: Iterator[Sequence[Picture]],
    read: Callable[[Sequence[Picture]], Pixels],
    workers: int,
) -> Iterator[Pixels]:
    """Reads the batches of `unread`, then those of a stream. They stay in `unread` until their pixels are given out."""
    with _processes(workers) as pool:
        futures = deque[Future[Pixels]]()
        try:
            futures.extend(pool.submit(read, batch) for batch in unread)
            while True:
                while len(futures) <= 2 * workers and (batch := next(stream, None)) is not None:
                    unread.append(batch)
                    futures.append(pool.submit(read, batch))
                if not futures:
                    return
                pixels = futures.popleft().result()
                unread.popleft()
                yield pixels
        finally:
            for future in futures:
                future.cancel()


def _read_one_by_one(
    batch: Sequence[Picture], read: Callable[[Sequence[Picture]], Pixels]
) -> tuple[Pixels, int]:  # fmt: skip
    """Reads each file by itself, in a fresh process after one that ends it; gives how many did, too."""
    left, found, died = deque(batch), list[Pixels](), 0
    while left:
        with _processes(1) as pool:
            try:
                pool.submit(_one_thread).result()
            except BrokenProcessPool as error:
                raise ValueError("processes that decode files end as soon as they start; use workers=0") from error
            try:
                while left:
                    found.append(pool.submit(read, [left[0]]).result())
                    left.popleft()
            except BrokenProcessPool:
                reason = "ends the process that decodes it, in practice for want of memory; scale it down"
                found.append(Pixels(torch.empty(0), [0], [f"{left.popleft()} {reason}"]))
                died += 1
    tensors = [pixels.tensor for pixels in found if len(pixels.tensor)]
    return Pixels(
        torch.cat(tensors) if tensors else torch.empty(0),
        [size for pixels in found for size in pixels.sizes],
        [problem for pixels in found for problem in pixels.problems],
    ), died


def _processes(number: int) -> ProcessPoolExecutor:
    # A forked child inherits the locks of torch's thread pool in an unknown state, so workers are spawned.
    return ProcessPoolExecutor(number, mp_context=get_context("spawn"), initializer=_one_thread)


def _one_thread() -> None:
    torch.set_num_threads(1)
