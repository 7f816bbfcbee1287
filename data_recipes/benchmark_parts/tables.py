"""VLMEvalKit's tables: fetched, read row by row, their pictures written as files.

A table is tab-separated with a line of names. Of its cells, `image` holds a picture in base64, or several as a Python
list; or the index of another row, whose picture it is then.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import hashlib
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from revision.pictures import Blob, open_picture

Row = dict[str, str]
TIMEOUT = 60  # seconds without a byte
LONGEST_INDEX = 64  # characters: a longer cell is a picture, and none is shorter
ENDINGS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"GI": "gif"}

csv.field_size_limit(sys.maxsize)


@dataclass(frozen=True)
class Table:
    """One file: where it has been published, and the md5 sums that VLMEvalKit has given for it, the newest first."""

    name: str
    places: tuple[str, ...]  # folders on the net, tried in turn
    md5: tuple[str, ...]
    rows: int | None = None  # that it is known to have

    @property
    def url(self) -> str:
        """Where it is likeliest to be."""
        return f"{self.places[0]}/{self.name}"


def fetch(table: Table, folder: Path) -> Path:
    """The file of a table below `folder`, from the network where it is not there; it is what its md5 says, and whole.

    Raises:
        ValueError: it can be fetched from none of its places.
    """
    path = folder / table.name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    reasons = []
    for place in table.places:
        try:
            with urllib.request.urlopen(f"{place}/{table.name}", timeout=TIMEOUT) as answer, partial.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
            reasons.append(str(getattr(error, "reason", error)))
            continue
        if md5_of(partial) in table.md5:
            os.replace(partial, path)
            return path
        reasons.append("its md5 is not the one that VLMEvalKit gives")
    partial.unlink(missing_ok=True)
    raise ValueError(
        f"{table.name} cannot be fetched ({'; '.join(reasons)}); download {table.url} and give its folder as --source"
    )


def md5_of(path: Path) -> str:
    """The md5 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def read(path: Path) -> Iterator[Row]:
    """The rows of a table; empty cells are left out, pandas' `nan` among them.

    Raises:
        ValueError: it is no table with an index, a question and an answer.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        lacking = {"index", "question", "answer"} - set(rows.fieldnames or [])
        if lacking:
            raise ValueError(f"{path} has no column {sorted(lacking)[0]!r}; it must be a table of VLMEvalKit")
        for row in rows:
            yield {name: cell for name, cell in row.items() if name and cell and cell.strip() and cell != "nan"}


@dataclass
class Pictures:
    """Pictures of one table, each written once, whatever the number of rows that show it.

    out: the corpus' folder; name: the benchmark's. records: id and path of each picture of the benchmark, which the
    tables of a benchmark share.
    """

    out: Path
    name: str
    records: dict[str, Row]
    _of_index: dict[str, str] = field(default_factory=dict)
    _faults: dict[str, str] = field(default_factory=dict)

    def look(self, path: Path) -> None:
        """Writes the pictures of all rows that hold one themselves."""
        for row in read(path):
            cell = row.get("image", "")
            if len(cell) <= LONGEST_INDEX:
                continue
            try:
                self._of_index[row["index"]] = self._kept(_single(cell))
            except ValueError as error:
                self._faults[row["index"]] = str(error)

    def of(self, row: Row) -> str:
        """The id of the picture of a row.

        Raises:
            ValueError: it has none, several, or one that cannot be read.
        """
        cell = row.get("image")
        if cell is None:
            raise ValueError("it has no picture")
        index = cell if len(cell) <= LONGEST_INDEX else row["index"]
        if index in self._faults:
            raise ValueError(self._faults[index])
        if index not in self._of_index:
            raise ValueError(f"its picture is that of row {index}, which has none")
        return self._of_index[index]

    def _kept(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()[:16]
        identity = f"{self.name}-{digest}"
        if identity not in self.records:
            open_picture(Blob("its picture", content))  # whatever `embed` would reject has no question here
            path = Path("images", self.name, f"{digest}.{ENDINGS.get(content[:2], 'bin')}")
            (self.out / path).parent.mkdir(parents=True, exist_ok=True)
            (self.out / path).write_bytes(content)
            self.records[identity] = {"id": identity, "image": str(path)}
        return identity


def _single(cell: str) -> bytes:
    """The one picture of a cell."""
    if cell.startswith("["):
        try:
            listed = ast.literal_eval(cell)
        except (SyntaxError, ValueError) as error:
            raise ValueError("its cell of pictures is no list") from error
        if len(listed) != 1:
            raise ValueError(f"it has {len(listed)} pictures; the paper takes questions about one")
        cell = listed[0]
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise ValueError("its picture is not base64") from error
