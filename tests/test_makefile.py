"""The targets that are several sweeps: each is run, whatever became of those before it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from revision.cli import main
from revision.runs import processes

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = {"nano-table": 4, "nano-map": 5, "nano-scaling": 2, "nano-tokens": 2}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", SWEEPS)
@pytest.mark.parametrize("failing", [None, 1, 2])
def test_a_sweep_that_fails_does_not_cost_the_next(target: str, failing: int | None, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    stand_in = tmp_path / "revision"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ntest "$(wc -l < {calls})" -ne {failing or 0}\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["make", target, f"REVISION={stand_in}", "NANO=", "STYLES="], cwd=ROOT, capture_output=True, text=True
    )
    lines = calls.read_text().splitlines()
    assert len(lines) == SWEEPS[target] and all(line.startswith("run -m experiment=nano_") for line in lines)
    assert len({*lines}) == len(lines)
    assert (done.returncode != 0) == (failing is not None)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", [*SWEEPS, "nano-ours"])
def test_every_job_of_a_sweep_is_one_that_could_start(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        ["make", target, "REVISION=echo", "NANO=", "STYLES=", "--silent"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    started: list[Sequence[str]] = []

    def attend(words: Sequence[str]) -> tuple[int, None]:
        started.append(words)
        return 0, None

    monkeypatch.setattr(processes, "attend", attend)
    for line in done.stdout.splitlines():
        one_seed = [] if "seed=" in line else ["seed=0"]
        assert main([*shlex.split(line), *one_seed, f"runs={tmp_path}"]) == 0, capfd.readouterr().out
    assert len(started) >= len(done.stdout.splitlines())


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_no_job_of_the_table_is_in_two_sweeps(tmp_path: Path) -> None:
    """Else each would evaluate it again, since they ask for other models."""
    done = subprocess.run(
        ["make", "nano-table", "REVISION=echo", "NANO=", "STYLES=", "--silent"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    words = [set(line.split()) for line in done.stdout.splitlines() if line.startswith("run -m")]
    for given in ({"pretrain.input=pairs"}, set()):
        seeds = [
            one.removeprefix("seed=").split(",")
            for line in words if line & {"pretrain.input=pairs"} == given
            for one in line if one.startswith("seed=")
        ]  # fmt: skip
        assert sorted(seed for some in seeds for seed in some) == ["0", "1", "2"]
