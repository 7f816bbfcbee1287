"""The launcher of a plain command: one sentence from several processes, their exit code, and nothing of torchrun's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from revision.runs.launching import say_once

LAUNCH = [sys.executable, "-m", "revision.runs.launching", "--standalone", "--nproc_per_node=2"]
FAILS = """
import os, sys
from revision.runs.launching import say_once
say_once("the disk is full")
say_once(f"and this is of rank {os.environ['RANK']}")
sys.exit(3)
"""


def launched(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script)
    return subprocess.run([*LAUNCH, str(folder / "script.py")], capture_output=True, text=True)


def test_what_all_say_is_said_once(tmp_path: Path) -> None:
    done = launched(FAILS, tmp_path)
    said = sorted(line for line in done.stderr.splitlines() if line)
    assert done.returncode == 3
    assert said.count("revision: the disk is full") == 1 and set(said) <= {
        "revision: the disk is full",
        "revision: and this is of rank 0",
        "revision: and this is of rank 1",  # unless the other's end has ended it before
    }


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    killed = "import os, time\ntime.sleep(60) if os.environ['RANK'] == '0' else os.kill(os.getpid(), 9)"
    done = launched(killed, tmp_path)
    assert done.returncode == 128 + 9
    assert done.stderr.splitlines() == ["revision: process 1 was killed by SIGKILL (out of memory?)"]


def test_nothing_is_added_where_all_is_well(tmp_path: Path) -> None:
    done = launched("", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_launch_every_sentence_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("REVISION_SAID", raising=False)
    say_once("a")
    say_once("a")
    monkeypatch.setenv("REVISION_SAID", str(tmp_path / "gone"))
    say_once("b")
    say_once("b")
    assert capsys.readouterr().err == 2 * "revision: a\n" + 2 * "revision: b\n"
