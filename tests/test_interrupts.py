"""Signals on their way through the command line: to the child, and back as an exit code and a sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from revision.cli import main
from revision.commands import verify
from revision.interrupts import WATCHED, Interrupted, SignalWatch, signal_of
from revision.runs import processes


@pytest.mark.parametrize("number", WATCHED)
def test_a_watch_notes_signals_and_leaves_no_trace(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with SignalWatch() as watch:
        os.kill(os.getpid(), number)
        assert watch.received == [number]
    assert signal.getsignal(number) == before


def test_a_forked_child_does_not_outlive_a_signal() -> None:
    with SignalWatch():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_another_thread_watches_nothing() -> None:
    entered: list[bool] = []

    def enter() -> None:
        with SignalWatch() as watch:
            entered.append(watch.received == [])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]


@pytest.mark.parametrize("number", WATCHED)
@pytest.mark.parametrize("answer", ["sys.exit(1)", "sys.exit(128 + number)", "os._exit(0)"])
def test_signals_are_passed_on_and_come_back(number: signal.Signals, answer: str, tmp_path: Path) -> None:
    """Whatever a launcher makes of it; a child that finished all the same is not said to have left."""
    ready = tmp_path / "ready"
    program = (
        "import os, signal, sys, time, pathlib\n"
        f"def leave(number, frame): {answer}\n"
        f"signal.signal({int(number)}, leave); pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )

    def send() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    code = processes.start([sys.executable, "-c", program])
    sender.join()
    assert code == (0 if answer == "os._exit(0)" else 128 + number)
    assert signal_of(code) == (number if code else None)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_the_command_line_says_so(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def left(_config: object) -> None:
        raise Interrupted(number, "saved after step 3")

    monkeypatch.setattr(verify, "run", left)
    assert main(["verify"]) == code
    assert capsys.readouterr().err == "revision: saved after step 3\n"


def test_codes_of_other_endings_are_no_signals() -> None:
    assert [signal_of(code) for code in (0, 1, 2, 130, 137, -15)] == [None] * 6


def test_an_iterator_that_is_left_does_not_keep_its_process() -> None:
    """Workers that leave signals to their parent would ignore what multiprocessing sends them at its exit."""
    script = """
import sys
from revision.training.order import Batches
sys.left = iter(Batches(list(range(9)), batch_sampler=[[place] for place in range(9)], num_workers=2))
sys.stdout.write(f"read {next(sys.left).tolist()}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "read [0]"), done.stderr
