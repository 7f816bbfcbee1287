"""Moments of rows on a GPU, and merged by NCCL, against those of the same rows on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from revision import ReAlign

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def sides() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(900, 24, generator=generator) + 1, torch.randn(700, 24, generator=generator) - 1


def share(rank: int, world: int, rendezvous: str, folder: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    text, image = (side.tensor_split(world)[rank].cuda() for side in sides())
    ReAlign(until=1e-7).fit(text, image, distributed=True).save(f"{folder}/{rank}")
    dist.destroy_process_group()


def test_processes_that_meet_over_nccl_fit_what_one_does(tmp_path: Path) -> None:
    """As many processes as there are GPUs, up to two."""
    world = min(2, torch.cuda.device_count())
    torch.multiprocessing.spawn(share, args=(world, str(tmp_path / "meet"), str(tmp_path)), nprocs=world)
    alone = ReAlign(until=1e-7).fit(*sides())
    found = [ReAlign.load(tmp_path / str(rank)) for rank in range(world)]
    rows = sides()[0].double()
    for one in found:
        assert one.statistics.text.count == 900 and one.fingerprint() == found[0].fingerprint()
        torch.testing.assert_close(one.apply(rows), alone.apply(rows), rtol=0, atol=1e-12)
