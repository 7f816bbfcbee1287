"""The scripts that measure: each runs, and holds its numbers against limits; what they are is nothing for a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_corpus import make_corpus

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts" / "bench"
SAID = {
    "alignment": ["realign", "rows/s"],
    "alignment_fit": [
        "fit / numpy's sums",
        "limit <= 2",
        "the quickest sums",
        "time of one process / time of two",
        "cost of a row",
    ],
    "alignment_exact": ["aligned rows: largest difference", "limit <= 1e-06", "realign: ", "until=1e-7", "drift"],
    "alignment_apply": ["rows mapped a second and core", "share of a step"],
    "store": ["random batches of 1,024", "limit >= 300,000", "64 random ids"],
    "stages": ["pretrain: samples", "instruct: samples", "the peak of this device is not known", "waiting for data"],
    "host_memory": ["20,000 texts, 12,000 conversations", "limit <= 1,024", "random conversations"],
}


def test_every_script_has_its_test() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} - {"measuring"} == {*SAID, "embed", "packing", "stage1"}


def run(script: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    root = SCRIPTS.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    words = (sys.executable, str(SCRIPTS / f"{script}.py"), *words)
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def assert_measured(done: subprocess.CompletedProcess[str]) -> None:
    """It came to its end, within its limits of memory. Those of speed are left open: a test is not alone, and small."""
    missed = re.findall(r"not reached: (.*)$", done.stderr, re.MULTILINE)
    assert done.returncode == len(missed), done.stderr
    assert not any("memory" in one for one in missed), done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", SAID)
def test_a_quick_run(script: str, tmp_path: Path) -> None:
    done = run(script, "--quick", folder=tmp_path)
    assert_measured(done)
    assert done.returncode == 0 or script != "alignment_exact", done.stderr  # none of its limits is of speed
    assert [part for part in SAID[script] if part not in done.stdout] == []
    left = [one.name for one in tmp_path.iterdir() if not one.name.startswith("torchinductor_")]  # torch makes it
    assert left == [], "what was made to be measured is deleted"


@pytest.mark.slow
def test_packing_on_a_tiny_corpus(tiny_llm: Path, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", tiny_llm)
    done = run("packing", f"--data={corpus}", "--samples=6", "--batch=2", "--rounds=1", folder=tmp_path)
    assert_measured(done)
    for part in ("texts: ", "conversations: ", "padded, grouped by length", "packed / padded"):
        assert part in done.stdout
    limits = [float(one) for one in re.findall(r"packed / padded ([\d.]+) \(limit", done.stdout)]
    assert len(limits) == 2
    refused = run("packing", f"--data={tmp_path / 'none'}", folder=tmp_path)
    assert refused.returncode == 1 and "has no assets/llm: `make run` makes it" in refused.stderr


@pytest.mark.slow
def test_stage_1_on_a_tiny_corpus(tiny_llm: Path, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", tiny_llm)
    sizes = ["--copies=4", "--slots=2", "--batch=2", "--steps=1", "--repeats=1", "--arms", "naive", "default"]
    done = run("stage1", f"--llm={tiny_llm}", f"--texts={corpus / 'texts.jsonl'}", *sizes, folder=tmp_path)
    assert_measured(done)
    assert "naive loop" in done.stdout and "through the Trainer" in done.stdout


@pytest.mark.slow
def test_embed_beside_the_encoder_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path
) -> None:
    corpus = make_corpus(tmp_path / "corpus", tiny_llm)
    temporary = tmp_path_factory.mktemp("t")  # short: its workers' sockets lie below it, whose paths end at 108 letters
    done = run("embed", "--quick", "--data", str(corpus), "--workers", "0", "1", folder=temporary)
    assert_measured(done)
    for part in ("texts: share", "limit >= 0.8", "pictures: embed, 0 decoding", "pictures: embed, 1 decoding"):
        assert part in done.stdout
    assert list(temporary.iterdir()) == [], "what was made to be measured is deleted"
    refused = run("embed", "--data", str(tmp_path), folder=tmp_path)
    assert refused.returncode == 1 and "has no assets/encoder: `make run` makes it" in refused.stderr
