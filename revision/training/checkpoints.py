"""The checkpoints of a stage on disk: whole or not there, checked before they are used, the newest few kept.

A checkpoint is written to `.checkpoint-<step>.part`, forced to the disk, listed with the checksum of each file in
`manifest.json`, and renamed to `checkpoint-<step>`. So a half-written one is never taken for one, and is cleared away
by the next start. One that is damaged later was damaged from outside: it is named, set aside as
`damaged-checkpoint-<step>`, and the one before it is taken. That costs time alone, since every checkpoint of a run
leads to the same weights; refusing would leave an unattended run standing. Where none is whole, every start is
refused until the damaged ones are gone: it would begin anew without a word otherwise.

Processes that saw other files would go on from other steps, or wait for each other for good. So rank 0 says what is
there, and all stop where one of them does not see it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from revision import folders
from revision.files import write_text
from revision.progress import say
from revision.training import ranks

IDENTITY = "identity.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_PROBE = 2**20  # bytes that are written to see whether a disk is full
_PATIENCE = 60.0  # seconds; storage over a network shows what another machine has written after so many at most


class Checkpoints:
    """The checkpoints below one folder. All processes call each method but `all` together.

    Args:
        folder: where they lie; on storage that all processes share.
        keep: how many of the newest stay.
        every: steps between regular ones, of which the newest always stays; None: there are no regular ones.
    """

    def __init__(self, folder: Path, *, keep: int = 2, every: int | None = None) -> None:
        self.folder, self.keep, self.every = folder, keep, every
        self._identity: dict[str, Any] = {}  # of the run, once it is opened

    def all(self) -> list[Path]:
        """Those that this process sees, the newest first."""
        found = [one for one in self.folder.glob("checkpoint-*") if one.is_dir() and _NAME.fullmatch(one.name)]
        return sorted(found, key=step_in, reverse=True)

    def regular(self) -> Path | None:
        """The newest regular one.

        Raises:
            ValueError: a process does not see it, or it is damaged.
        """
        newest = self._regular()
        found = next(iter(self._shared([] if newest is None else [newest])), None)
        broken = [] if found is None else [fault for share in ranks.gather(_faults(found)) for fault in share]
        if broken:
            raise ValueError(
                f"{found}, which the run would return to, is damaged ({broken[0]}); the same command goes on from the "
                "newest checkpoint that is whole"
            )
        return found

    def open(self, identity: Mapping[str, Any]) -> Path | None:
        """Clears away what was left half-written, and gives the newest checkpoint that is whole; None: there is none.

        Args:
            identity: everything that the run's result depends on, as plain values; kept beside the checkpoints, and in
                each of them.

        Raises:
            ValueError: checkpoints of another identity, with the fields that differ; none that is whole, now or at an
                earlier start; or files that a process does not see.
        """
        if ranks.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in [*self.folder.glob(".*"), self.folder.with_name(f".{self.folder.name}.gone")]:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        ranks.agree(None)
        found = self._shared(self.all())
        self._identity = json.loads(json.dumps(identity))
        failure = None
        if found:
            failure = self._difference(found)
        elif any(self.folder.glob("damaged-checkpoint-*")):
            failure = self._none_whole()
        elif ranks.rank() == 0:
            self._write_identity(self.folder)
        ranks.agree(failure)
        self._require_seen([] if found else [self.folder / IDENTITY])
        return self._newest_whole(found)

    def write(self, step: int, save: Callable[[Path], object], *, alone: bool) -> Path:
        """Writes one checkpoint.

        Args:
            step: that it is made after.
            save: puts the state into a folder.
            alone: whether a process that fails in `save` leaves the others waiting there, as sharded engines do.

        Raises:
            ValueError: the disk is full or cannot be written, or a process does not see what others have written; the
                checkpoints before stay as they are.
        """
        folder = self.folder / f"checkpoint-{step}"
        aside = self.folder / f".{folder.name}.part"
        main = ranks.rank() == 0
        self._try(step, lambda: _renew(aside) if main else None)
        try:
            self._try(step, lambda: save(aside), alone=alone)
            self._try(step, lambda: self._write_identity(aside) if main else None)
            names = sorted({name for listed in ranks.gather(folders.names_of(aside)) for name in listed})
            self._require_seen([aside / name for name in names])
            entries: dict[str, folders.Entry] = {}
            self._try(step, lambda: entries.update(folders.record(aside, names[ranks.rank() :: ranks.world()])))
            merged = {name: entry for share in ranks.gather(entries) for name, entry in share.items()}
            self._try(step, lambda: self._publish(aside, folder, merged, step) if main else None)
        finally:
            if main:
                shutil.rmtree(aside, ignore_errors=True)
        return folder

    def _publish(self, aside: Path, folder: Path, entries: Mapping[str, folders.Entry], step: int) -> None:
        folders.write_manifest(aside, entries, kind="checkpoint", step=step)
        folders.publish(aside, folder)
        newest = self.all()
        kept = {*newest[: self.keep], self._regular()}
        for one in newest:
            if one not in kept:
                gone = one.with_name(f".{one.name}.gone")
                os.replace(one, gone)  # one that is half-deleted must not look like a damaged one
                shutil.rmtree(gone, ignore_errors=True)

    def _try(self, step: int, act: Callable[[], object], *, alone: bool = False) -> None:
        failure = None
        expected = (OSError, SafetensorError, RuntimeError) if alone else (OSError, SafetensorError)
        try:
            act()
        except expected as error:
            newest = next(iter(self.all()), None)
            after = "there is none before it" if newest is None else f"{newest.name} is whole"
            reason = "the disk is full" if _is_full(self.folder) else folders.reason_of(error)
            failure = (
                f"the checkpoint after step {step} cannot be written to {self.folder}: {reason}; "
                f"{after}: mend the cause, and the same command goes on from there"
            )
            if alone and ranks.together():
                raise ValueError(failure) from error
        ranks.agree(failure)

    def _regular(self) -> Path | None:
        return next((one for one in self.all() if self._is_regular(one)), None)

    def _shared(self, found: list[Path]) -> list[Path]:
        """The checkpoints that rank 0 has found, once every process sees each of their files."""
        names = {one.name: [f"{one.name}/{file.relative_to(one)}" for file in one.rglob("*")] for one in found}
        seen: dict[str, list[str]] = ranks.of_main(names)
        self._require_seen([self.folder / name for listed in seen.values() for name in listed])
        return [self.folder / name for name in seen]

    def _require_seen(self, files: Iterable[Path]) -> None:
        """Holds that this process sees what some process does; storage over a network may need its time."""
        deadline = time.monotonic() + _PATIENCE
        unseen = [file for file in files if not file.exists()] if ranks.together() else []
        while unseen and time.monotonic() < deadline:
            time.sleep(1)
            unseen = [file for file in unseen if not file.exists()]
        ranks.agree(
            f"process {ranks.rank()} does not see {unseen[0]}, which another one does; let `runs` lie on storage that "
            "all processes share, or start them on one machine"
            if unseen
            else None
        )

    def _is_regular(self, folder: Path) -> bool:
        return self.every is not None and step_in(folder) % self.every == 0

    def _write_identity(self, folder: Path) -> None:
        write_text(folder / IDENTITY, json.dumps(self._identity, indent=1, sort_keys=True) + "\n")

    def _difference(self, found: Sequence[Path]) -> str | None:
        """Why checkpoints are none of this run, in a sentence; one beside them alone is an older version's."""
        marks = [one / IDENTITY for one in (found[0], self.folder, *found[1:])]
        then = next((known for mark in marks if (known := _read_json(mark)) is not None), None)
        if then is None:
            return f"{self.folder} holds checkpoints, but no {IDENTITY} that can be read and says of what; delete it"
        if not isinstance(then, dict):
            return f"{self.folder} holds checkpoints of an older version of this program; delete the folder"
        now = self._identity
        fields = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        if not fields:
            return None
        shown = "; ".join(f"{name}: {_shown(then.get(name))} -> {_shown(now.get(name))}" for name in fields)
        remedy = "restore it to resume the run, or delete the folder to start anew"
        return f"{self.folder} holds checkpoints of a run that differs in {shown}; {remedy}"

    def _newest_whole(self, found: list[Path]) -> Path | None:
        for place, folder in enumerate(found):
            broken = [fault for share in ranks.gather(_faults(folder)) for fault in share]
            if not broken:
                return folder
            damaged = folder.with_name(f"damaged-{folder.name}")
            if ranks.rank() == 0:
                shutil.rmtree(damaged, ignore_errors=True)
                os.replace(folder, damaged)
                after = found[place + 1].name if place + 1 < len(found) else "none"
                say(
                    f"{folder} is damaged ({broken[0]}) and set aside as {damaged.name}; the one before it is {after}, "
                    "from where the run comes to the same weights"
                )
            ranks.agree(None)
        if found:
            ranks.agree(self._none_whole())
        return None

    def _none_whole(self) -> str:
        damaged = sum(one.is_dir() for one in self.folder.glob("damaged-checkpoint-*"))
        return (
            f"no checkpoint in {self.folder} is whole ({damaged} are damaged); restore one as checkpoint-<step>, or "
            "delete the folder to start anew"
        )


def step_in(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.rsplit("-", 1)[1])


def _faults(folder: Path) -> list[str]:
    """What is wrong with this process's share of the files."""
    try:
        entries = folders.read_manifest(folder)
    except ValueError as error:
        return [str(error)]
    mine = sorted(entries)[ranks.rank() :: ranks.world()]
    return folders.faults(folder, {name: entries[name] for name in mine})


def _renew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _read_json(path: Path) -> Any:
    """What a file holds; None where it is not there, or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_full(folder: Path) -> bool:
    """Whether no small file can be added; what engines say of a full disk does not tell."""
    probe = folder / f".probe-{ranks.rank()}"
    try:
        probe.write_bytes(bytes(_PROBE))
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    finally:
        probe.unlink(missing_ok=True)
    return False


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12]  # of a fingerprint
    return text if len(text) <= 60 else f"{text[:57]}..."
