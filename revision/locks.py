"""Locks between processes: two never make the same thing at once. A lock ends with its process, however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from revision.progress import say

_BUSY = (errno.EACCES, errno.EAGAIN)
_NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without locks


@contextmanager
def held(path: Path, what: str, *, wait: bool) -> Iterator[None]:
    """Holds the lock on a file, which is made for it and gone afterwards.

    Locks are POSIX's: they hold across the machines that share a file system, and children do not inherit them.

    Args:
        path: of the lock file; its folder is made if missing.
        what: is being made, for the sentence that says who else does.
        wait: for another process that holds it, rather than refuse.

    Raises:
        ValueError: another process holds it, and is not waited for; or the file cannot be written.
    """
    file = _taken(path, what, wait=wait)
    if file is None:
        yield
        return
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):  # not empty, as it should be where something was made
            path.parent.rmdir()


def _taken(path: Path, what: str, *, wait: bool) -> TextIO | None:
    """The lock file, locked; None where the file system has no locks."""
    while True:
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a+", encoding="utf-8"))
            except FileNotFoundError:
                continue  # another process has taken the empty folder away just now
            except OSError as error:
                raise ValueError(f"{path} cannot be written, and so {what} cannot: {error.strerror}") from error
            if not _locked(file, path, what, wait=wait):
                return None
            if _is_there(file, path):  # else whoever held it has taken it away: that lock keeps nobody out
                stack.pop_all()
                return file


def _locked(file: TextIO, path: Path, what: str, *, wait: bool) -> bool:
    """Whether the lock is held now; False where the file system has none, which is said."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NONE_HERE:
            say(f"{path.parent} lies on a file system without locks: nothing keeps a second process out of {what}")
            return False
        if error.errno not in _BUSY:
            raise
        file.seek(0)
        holder = file.read().strip() or "another process"
        if not wait:
            raise ValueError(f"{what} is being made by {holder}; wait for it, or end it first") from error
        say(f"{what} is being made by {holder}: waiting for it")
        fcntl.lockf(file, fcntl.LOCK_EX)
    return True


def _is_there(file: TextIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
