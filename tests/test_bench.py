"""The scripts that measure: each runs, and holds its numbers against limits; what they are is nothing for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts" / "bench"
SAID = {
    "alignment": ["realign", "rows/s"],
    "alignment_fit": ["fit / plain sums", "limit <= 2", "time of one process / time of two", "cost of a row"],
    "alignment_apply": ["rows mapped a second and core", "share of a step"],
    "store": ["random batches of 1,024", "limit >= 300,000", "64 random ids"],
    "host_memory": ["20,000 texts, 12,000 conversations", "limit <= 1,024", "random conversations"],
}


def test_every_script_without_a_model_has_its_test() -> None:
    found = {path.stem for pattern in ("alignment*.py", "store.py", "host_memory.py") for path in SCRIPTS.glob(pattern)}
    assert found == {*SAID}


@pytest.mark.slow
@pytest.mark.parametrize("script", SAID)
def test_a_quick_run(script: str, tmp_path: Path) -> None:
    root = SCRIPTS.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    words = [sys.executable, str(SCRIPTS / f"{script}.py"), "--quick"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [part for part in SAID[script] if part not in done.stdout] == []
    left = [one.name for one in tmp_path.iterdir() if not one.name.startswith("torchinductor_")]  # torch makes it
    assert left == [], "what was made to be measured is deleted"
