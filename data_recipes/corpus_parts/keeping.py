"""Record files that grow row by row, survive a kill, and are there in full or not at all."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]
REJECTED = "rejected"
_PROGRESS = "progress.json"


class Keeper:
    """Writes the record files of one recipe.

    Rows go to `<name>.jsonl.partial`. Every `interval` rows of the source they are brought to the disk, with a note of
    how far the source has been read; the next start cuts the files back to that note and goes on from there.

    Args:
        out: folder of the corpus.
        names: of the files, without `.jsonl`; `rejected` is always one of them.
        made_from: fingerprint of recipe, options and source; a note of another one is thrown away.
        interval: rows of the source between two notes.
    """

    def __init__(self, out: Path, names: tuple[str, ...], made_from: str, interval: int = 20_000) -> None:
        self.out, self.made_from, self.interval = out, made_from, interval
        self.names = (*names, REJECTED)
        out.mkdir(parents=True, exist_ok=True)
        note = self._note()
        self.done: int = note.get("done", 0)
        self.counts: dict[str, int] = note.get("counts", dict.fromkeys(self.names, 0))
        self.remarks: Counter[str] = Counter(note.get("remarks", {}))
        self.unfit: Counter[str] = Counter(note.get("unfit", {}))
        self.first_unfit: dict[str, str] = note.get("first_unfit", {})
        self._files: dict[str, TextIO] = {}
        for name in self.names:
            file = self.path_of(name).open("r+" if self.done else "w", encoding="utf-8", newline="\n")
            file.truncate(note["sizes"][name] if self.done else 0)
            file.seek(0, os.SEEK_END)
            self._files[name] = file

    def add(self, name: str, row: Row) -> None:
        """Adds a row to a file. Raises ValueError for one that no file can store."""
        self.write(name, line_of(row))

    def write(self, name: str, line: str) -> None:
        """Adds a row to a file, as `line_of` gives it."""
        self._files[name].write(line)
        self.counts[name] += 1

    def reject(self, identity: str, reason: str) -> None:
        """Says why a row of the source became no record."""
        self.add(REJECTED, {"id": identity, "reason": reason.encode(errors="backslashreplace").decode()})

    def count_unfit(self, source: str, reason: str) -> None:
        """Counts a row of a source that is not what the source should hold; keeps the first reason of each."""
        self.unfit[source] += 1
        self.first_unfit.setdefault(source, reason)

    def remark(self, remark: str) -> None:
        """Counts a row of the source that something is said of, whether it became a record or not."""
        self.remarks[remark] += 1

    def step(self) -> None:
        """Says that one more row of the source is dealt with."""
        self.done += 1
        if self.done % self.interval == 0:
            self.save()

    def save(self) -> None:
        """Brings all to the disk, with a note of how far that is."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: self.path_of(name).stat().st_size for name in self.names}
        note = {"made_from": self.made_from, "done": self.done, "counts": self.counts, "sizes": sizes}
        note |= {"remarks": self.remarks, "unfit": self.unfit, "first_unfit": self.first_unfit}
        aside = self.out / f".{_PROGRESS}.partial"
        aside.write_text(json.dumps(note))
        os.replace(aside, self.out / _PROGRESS)

    def path_of(self, name: str) -> Path:
        """Where a file lies until it is finished."""
        return self.out / f"{name}.jsonl.partial"

    def written(self, name: str) -> Iterator[Row]:
        """The rows of a file so far: what a recipe that remembers has to remember again after a kill."""
        self._files[name].flush()
        with self.path_of(name).open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def finish(self) -> dict[str, int]:
        """Gives the files their names; returns the counts. Files without a row are left out."""
        self.save()
        for name, file in self._files.items():
            file.close()
            if self.counts[name] or name == REJECTED:
                os.replace(self.path_of(name), self.out / f"{name}.jsonl")
            else:
                self.path_of(name).unlink()
                (self.out / f"{name}.jsonl").unlink(missing_ok=True)
        (self.out / _PROGRESS).unlink()
        return self.counts

    def _note(self) -> dict[str, Any]:
        file = self.out / _PROGRESS
        if not file.is_file() or not all(self.path_of(name).is_file() for name in self.names):
            return {}
        note: dict[str, Any] = json.loads(file.read_text())
        return note if note["made_from"] == self.made_from else {}


def line_of(row: Row) -> str:
    """A row as a line of a file. Raises ValueError where a text in it cannot be stored."""
    line = json.dumps(row, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError as error:
        part = line[max(0, error.start - 20) : error.end]
        raise ValueError(f"it holds half a surrogate pair, which no file can store: {part!r}") from error
    return line


def write_whole(path: Path, rows: Iterator[Row]) -> int:
    """Writes JSON lines aside and renames; returns how many."""
    aside, count = path.with_name(f"{path.name}.partial"), 0
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(line_of(row))
            count += 1
    os.replace(aside, path)
    return count
