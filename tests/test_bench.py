"""The scripts that measure: each runs, and holds its numbers against limits; what they are is nothing for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_corpus import make_corpus

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts" / "bench"
SAID = {
    "alignment": ["realign", "rows/s"],
    "alignment_fit": ["fit / plain sums", "limit <= 2", "time of one process / time of two", "cost of a row"],
    "alignment_apply": ["rows mapped a second and core", "share of a step"],
    "store": ["random batches of 1,024", "limit >= 300,000", "64 random ids"],
}


def test_every_script_on_embeddings_has_its_test() -> None:
    found = {path.stem for pattern in ("alignment*.py", "store.py") for path in SCRIPTS.glob(pattern)}
    assert found == {*SAID}


def said(script: str, temporary: Path, *words: str) -> str:
    """What a script says that runs in its small size; it has to leave nothing behind."""
    temporary.mkdir()
    root = SCRIPTS.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    line = [sys.executable, str(SCRIPTS / f"{script}.py"), "--quick", *words]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == [], "what was made to be measured is deleted"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SAID)
def test_a_quick_run(script: str, tmp_path: Path) -> None:
    output = said(script, tmp_path / "temporary")
    assert [part for part in SAID[script] if part not in output] == []


@pytest.mark.slow
def test_embed_beside_the_encoder_alone(tmp_path: Path, tiny_llm: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", tiny_llm)
    output = said("embed", tmp_path / "temporary", "--data", str(corpus), "--workers", "0", "1")
    for part in ("texts: share", "limit >= 0.8", "pictures: embed, 0 decoding", "pictures: embed, 1 decoding"):
        assert part in output
    output = said("embed", tmp_path / "nothing", "--data", str(tmp_path))
    assert output == f"{tmp_path} has no assets/encoder: `make run` makes it, or name the corpus with --data\n"
