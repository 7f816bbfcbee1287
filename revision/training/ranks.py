"""What the processes of one training run tell each other; with one process, nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from revision import locks

_PATIENCE = timedelta(days=1)  # with a process that works alone: one that reads a corpus, counts it, or writes a model
_own: tuple[Any, Any] | None = None  # the group of all that training has, and that of our words


def together() -> bool:
    """Whether there are several processes."""
    return bool(distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if together() else 1


def rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if together() else 0


def gather(value: Any) -> list[Any]:
    """The value that each process gives, by rank, on every process."""
    if not together():
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value, group=_group())
    return values


def _group() -> Any:
    """A group of gloo's for words: that of training gives up after half an hour, and over NCCL keeps a GPU busy."""
    global _own
    whole = distributed.group.WORLD
    if _own is None or _own[0] is not whole:
        _own = whole, distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return _own[1]


def of_main(value: Any) -> Any:
    """The value that rank 0 gives, on every process: what all must see alike, where each might see it otherwise."""
    return gather(value)[0]


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if together():
        distributed.all_reduce(values)
    return values


def agree(failure: str | None) -> None:
    """Waits for all processes; where one has failed, all stop with its sentence.

    Raises:
        ValueError: the first sentence, by rank.
    """
    sentences = [sentence for sentence in gather(failure) if sentence is not None]
    if sentences:
        raise ValueError(sentences[0])


@contextmanager
def main_first() -> Iterator[None]:
    """Lets rank 0 go through a block before the others do, who find the files that it has made.

    Raises:
        ValueError: rank 0 has failed; on every process, with its sentence.
    """
    if rank() > 0:
        agree(None)
        yield
        return
    try:
        yield
    except ValueError as error:
        agree(str(error))
    else:
        agree(None)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keeps a second run out of the folder of a stage, whose checkpoints it would clear away.

    Raises:
        ValueError: another run makes it; on every process.
    """
    with ExitStack() as stack:
        failure = None
        if rank() == 0:
            lock = output.with_name(f".{output.name}.lock")
            try:
                stack.enter_context(locks.held(lock, f"{output}", wait=False))
            except ValueError as error:
                failure = f"{error}; or give this run a name of its own"
        agree(failure)
        yield


def part() -> None:
    """Ends the process group once all have come; without it gloo aborts at random when one ends before another."""
    global _own
    if distributed.is_available() and distributed.is_initialized():
        gather(None)
        distributed.destroy_process_group()
        _own = None
