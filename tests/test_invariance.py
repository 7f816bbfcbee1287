"""Settings that must train alike: how a batch is split over accumulation steps and over processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_training import run

HERE = Path(__file__).parent


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_batch(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    output = tmp_path_factory.mktemp("whole")
    run(str(tiny_llm), output, batch=8, accumulation=1)
    return losses(output)


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 4), (1, 8)])
def test_accumulation_does_not_change_the_loss(
    batch: int, accumulation: int, tiny_llm: Path, whole_batch: list[float], tmp_path: Path
) -> None:
    run(str(tiny_llm), tmp_path, batch=batch, accumulation=accumulation)
    assert losses(tmp_path) == pytest.approx(whole_batch, abs=2e-6)
    assert max(whole_batch) - min(whole_batch) > 1e-3  # it did train: a constant would pass everything


def test_two_processes_equal_one(tiny_llm: Path, whole_batch: list[float], tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(HERE / "made_training.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, str(tiny_llm), str(tmp_path), "4", "1"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path) == pytest.approx(whole_batch, abs=1e-5)
    assert "2 process(es) as DistributedDataParallel" in done.stdout


def test_samples_without_a_picture_mix_in(tiny_llm: Path, tmp_path: Path) -> None:
    run(str(tiny_llm), tmp_path / "a", batch=8, accumulation=1, text_only=True)
    run(str(tiny_llm), tmp_path / "b", batch=1, accumulation=8, text_only=True)
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=2e-6)
