"""`python -m revision.runs.launching OPTIONS -m revision COMMAND ...`: torchrun on this machine, for a plain command.

Each process says for itself what is wrong. torchrun would add a page of its own; here its exit code is that of the
first process that failed, and a sentence is added where that one could not speak. Of equal sentences of several
processes one is shown (`say_once`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from revision.cores import usable_cores

_SAID = "REVISION_SAID"  # folder in which processes of one launch note what they have said


def main(arguments: Sequence[str]) -> int:
    """Starts the processes and waits for them; returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from revision.runs.processes import ending

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="revision-") as folder:
        os.environ[_SAID] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(_threads(arguments)))
        try:
            torchrun(list(arguments))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                sys.stderr.write(f"revision: process {rank} {ending(failure.exitcode)}\n")
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        except SignalException as stop:
            return 128 + stop.sigval
    return 0


def _threads(arguments: Sequence[str]) -> int:
    """An equal share of the cores for each process; torchrun would give one, on which DeepSpeed's Adam is slow."""
    count = next(one.partition("=")[2] for one in arguments if one.startswith("--nproc_per_node="))
    return max(1, usable_cores() // int(count))


def say_once(sentence: str) -> None:
    """Writes a sentence on what is wrong to stderr, unless another process of this launch has."""
    folder = os.environ.get(_SAID)
    if folder is not None:
        try:
            Path(folder, hashlib.sha256(sentence.encode()).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:  # a full disk, or the launch is over: better twice than never
            pass
    sys.stderr.write(f"revision: {sentence}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
