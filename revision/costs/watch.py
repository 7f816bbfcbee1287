"""How fast training runs, what share of that is waiting for data, and what memory it takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch

from revision.costs.flops import Counts, Work, counts_of
from revision.costs.memory import GIB

_T = TypeVar("_T")


class Watch:
    """Counts batches without making the device wait; rates are those since the last reading.

    Args:
        work: FLOPs of the model as it is frozen.
        device: of this process.
        peak: FLOP a second that this device could do at most, or None where that is not known.
    """

    def __init__(self, work: Work, *, device: torch.device, peak: float | None) -> None:
        self._work, self._device, self._peak = work, device, peak
        self._counts = torch.zeros(5, dtype=torch.int64, device=device)
        self._waited = 0.0
        self.start()

    def start(self) -> None:
        """Starts the clocks, of the whole and of the first reading."""
        self._begun = self._read_at = time.monotonic()
        self._before, self._waited_before = self._summed(), self._waited

    def timed(self, batches: Iterator[_T]) -> Iterator[_T]:
        """The same batches; the time that each of them lets the loop wait is noted."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def count(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Adds a micro-batch of this process."""
        self._counts += counts_of(batch).to(self._device)

    def read(self) -> dict[str, float]:
        """Rates of all processes since the last reading; every process has to call it at the same time.

        Returns:
            `samples_per_second`; `tokens_per_second`, of the LLM's input, visual ones included and padding not;
            `flops_per_second`, of the model and not of the hardware (`costs.flops`); `mfu`, the share of the devices'
            peak that this is, where the peak is known; `data_wait`, the share of the time in which this process waited
            for its batches; `memory_gib`, the peak so far: of the GPU, or of the whole process on a CPU.
        """
        now, counts = time.monotonic(), self._summed()
        rates = self._rates(counts - self._before, now - self._read_at)
        rates["data_wait"] = (self._waited - self._waited_before) / max(now - self._read_at, 1e-9)
        self._read_at, self._before, self._waited_before = now, counts, self._waited
        return {**rates, "memory_gib": self._memory() / GIB}

    def overall(self) -> dict[str, float]:
        """Rates since the start, as `read` gives them, but for the wait and the memory; also to be called by all."""
        return self._rates(self._summed(), time.monotonic() - self._begun)

    def _rates(self, counts: torch.Tensor, seconds: float) -> dict[str, float]:
        tokens, pairs, labels, pictures, samples = counts.tolist()
        seconds = max(seconds, 1e-9)
        flops = self._work.of(Counts(tokens, pairs, labels, pictures)).total / seconds
        rates = {"samples_per_second": samples / seconds, "tokens_per_second": tokens / seconds}
        rates["flops_per_second"] = flops
        if self._peak is not None:
            rates["mfu"] = flops / (self._peak * self._processes())
        return rates

    def _summed(self) -> torch.Tensor:
        """Counts of all processes so far, on the CPU."""
        counts = self._counts.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        return counts.cpu()

    @staticmethod
    def _processes() -> int:
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def _memory(self) -> float:
        """Bytes."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else peak * 1024)
