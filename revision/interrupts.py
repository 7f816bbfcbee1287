"""Signals that ask a long command to put its work in order and leave."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

# SIGTERM: a scheduler's time limit, a reclaimed machine, `kill`. SIGUSR1: what schedulers send ahead of it on request.
WATCHED = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(BaseException):
    """A command has saved its work and left because a signal asked for it; the same command goes on from there.

    Like KeyboardInterrupt it is no error, and nothing that handles errors may take it for one.

    Attributes:
        signal: which one.
        exit_code: 128 and its number, as of a process that a signal ended.
    """

    def __init__(self, number: signal.Signals, sentence: str = "") -> None:
        super().__init__(sentence)
        self.signal = number

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that a signal ended."""
        return 128 + self.signal


def signal_of(exit_code: int) -> signal.Signals | None:
    """The watched signal that made a child save its work and leave, from the child's exit code; None: it did not."""
    return next((one for one in WATCHED if exit_code == 128 + one), None)


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """For data-loading processes: a signal may reach a whole group, and a parent that saves needs its workers.

    Their parent has to call `kill_children_at_exit`.
    """
    for one in WATCHED:
        signal.signal(one, signal.SIG_IGN)


@functools.cache
def kill_children_at_exit() -> None:
    """For the parent of such processes: multiprocessing would ask those that are left to end by SIGTERM, and wait for
    them for ever. Those that a training has finished with are gone by then."""
    atexit.register(_kill_children)


def _kill_children() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class SignalWatch:
    """Notes the watched signals while it is entered, in place of dying from them.

    Attributes:
        received: those that have come, in order.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers, nor gets signals
            self._before = {one: signal.signal(one, self._note) for one in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            os._exit(128 + number)  # a forked child has nothing to save
        self.received.append(signal.Signals(number))
