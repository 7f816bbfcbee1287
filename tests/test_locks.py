"""Locks between processes: refusing, waiting, kills, and a lock file that somebody takes away."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from revision import locks
from revision.training import alone

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from revision import locks
with locks.held(Path(sys.argv[1]), "the thing", wait=False):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    words = [sys.executable, "-c", HOLD, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".x.lock"
    with locks.held(path, "x", wait=False):
        assert path.is_file()
    assert not path.parent.exists()
    (tmp_path / "kept").touch()
    with pytest.raises(KeyError), locks.held(tmp_path / ".x.lock", "x", wait=False):
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / ".x.lock"
    with holder(path) as process:
        sentence = f"^the thing is being made by process {process.pid} on .*; wait for it, or end it first$"
        with pytest.raises(ValueError, match=sentence), locks.held(path, "the thing", wait=False):
            raise AssertionError("held twice")
    with locks.held(path, "the thing", wait=False):  # the other was killed, and its file was left
        pass
    assert not path.exists()


def test_a_second_process_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".x.lock"
    with holder(path) as process:
        assert process.stdin is not None
        threading.Timer(0.3, process.stdin.close).start()
        started = time.monotonic()
        with locks.held(path, "the thing", wait=True):
            assert time.monotonic() - started > 0.2 and path.is_file()
            assert path.read_text().startswith(f"process {os.getpid()} on ")
        assert process.wait() == 0
    assert f"the thing is being made by process {process.pid}" in capsys.readouterr().out.replace("\n", " ")


def test_a_stage_is_made_by_one_run(tmp_path: Path) -> None:
    output = tmp_path / "run" / "pretrain"
    sentence = "is being made by process .*; or give this run a name of its own$"
    with holder(tmp_path / "run" / ".pretrain.lock"), pytest.raises(ValueError, match=sentence), alone(output):
        raise AssertionError("two of them")
    with alone(output):
        assert (tmp_path / "run" / ".pretrain.lock").is_file()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path, sentence = tmp_path / "file" / ".x.lock", "and so the thing cannot: (Not a directory|File exists)$"
    with pytest.raises(ValueError, match=sentence), locks.held(path, "the thing", wait=True):
        raise AssertionError("held")


def test_children_do_not_keep_a_lock(tmp_path: Path) -> None:
    """A data-loading process lives on for a moment when its parent is killed, and must not keep the next run out."""
    path = tmp_path / ".x.lock"
    parent = os.fork()
    if parent == 0:
        with locks.held(path, "x", wait=False):
            if os.fork() == 0:
                time.sleep(1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    assert path.is_file()
    with locks.held(path, "x", wait=False):
        pass


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locks.held(tmp_path / ".x.lock", "the thing", wait=False):
        pass
    assert "lies on a file system without locks" in capsys.readouterr().out.replace("\n", " ")
