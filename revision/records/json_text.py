"""JSON in constant memory: lines, a list, or a mapping of lists, item by item."""

from __future__ import annotations

import codecs
import json
import zlib
from collections.abc import Callable, Iterator
from json import JSONDecoder
from pathlib import Path
from typing import IO, Any, NoReturn

BOM = codecs.BOM_UTF8
LONGEST = 256 * 1024 * 1024  # bytes that one record may have; a file above that without a line break is no JSON lines
_CHUNK = 1 << 20
DAMAGED = (OSError, EOFError, zlib.error)  # what gzip says of a file that is not whole


def lines(file: IO[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (where, value) of each line that is not blank. Raises ValueError for one that is not valid JSON."""
    number = 0
    while True:
        number += 1
        where = f"{path}, line {number}"
        try:
            line = file.readline(LONGEST)
        except DAMAGED as error:
            raise ValueError(f"{where}: the file is damaged: {error}") from error
        if not line:
            return
        if len(line) == LONGEST and not line.endswith(b"\n"):
            raise ValueError(f"{where} is longer than {LONGEST >> 20} MiB; a record a line is expected there")
        if number == 1:
            line = line.removeprefix(BOM)
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except RecursionError as error:
            raise ValueError(f"{where} is nested too deeply to be a record") from error
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
            raise ValueError(f"{where} is not valid JSON: {error}") from error
        yield where, value


def first_line(file: IO[bytes]) -> Any:
    """The value of the first line that is not blank, where that is complete JSON of up to 1 MiB; else None."""
    for line in iter(lambda: file.readline(_CHUNK), b""):
        if line.strip():
            try:
                return json.loads(line.removeprefix(BOM))
            except (ValueError, RecursionError):  # whoever reads the file for its records says what is wrong with it
                return None
    return None


def items(file: IO[bytes], path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (where, value) of each item of a list. Raises ValueError for what is not valid JSON."""
    text = _Text(file, path)
    text.expect("[")
    for number, value in enumerate(text.rest_of_list(), start=1):
        yield f"{path}, item {number}", value
    text.expect_end()


def parts_of_mapping(
    open_file: Callable[[], IO[bytes]], path: Path, parts: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    """Yields (where, item) of the lists `parts` of one mapping, part by part; other values are passed over.

    Raises:
        ValueError: not valid JSON; a part that is no list; none of the parts is there.
    """
    keys: list[str] = []
    for wanted in parts or ("",):
        keys = []
        with open_file() as file:
            text = _Text(file, path)
            text.expect("{")
            for key in text.rest_of_keys():
                keys.append(key)
                if key == wanted and text.peek() != "[":
                    raise ValueError(f'{path} must hold a list of records or {{"images": [...], "texts": [...]}}')
                if text.peek() != "[":
                    text.value()
                    continue
                text.expect("[")
                for number, value in enumerate(text.rest_of_list(), start=1):
                    if key == wanted:
                        yield f"{path}, {key} item {number}", value
            text.expect_end()
    if not set(parts) & set(keys):
        raise ValueError(
            f"{path} is a mapping without {' or '.join(map(repr, parts)) or 'a list of records'}; "
            f"it has {', '.join(map(repr, keys)) or 'nothing'}"
        )


class _Text:
    """JSON text that is read in pieces: a window on it, and the place in the window."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = JSONDecoder().raw_decode
        self._window, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self._at < len(self._window):
                if not self._window[self._at].isspace():
                    return self._window[self._at]
                self._at += 1
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Passes over one character."""
        if self.peek() != character:
            self._refuse(f"{character!r} is expected, not {self.peek() or 'the end of the file'!r}")
        self._at += 1

    def expect_end(self) -> None:
        """Holds that nothing follows."""
        if self.peek():
            self._refuse(f"{self._window[self._at : self._at + 20]!r} follows its end")

    def rest_of_list(self) -> Iterator[Any]:
        """The items of a list whose bracket has been passed."""
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self._at += 1
                return
            self.expect(",")

    def rest_of_keys(self) -> Iterator[str]:
        """The keys of a mapping whose brace has been passed; the caller takes the value of each."""
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                self._refuse(f"{key!r} stands where a key is expected")
            self.expect(":")
            yield key
            if self.peek() == "}":
                self._at += 1
                return
            self.expect(",")

    def value(self) -> Any:
        """The next value. The window grows until it holds it whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._window, self._at)
            except RecursionError as error:
                raise ValueError(f"{self._path} is nested too deeply to be records") from error
            except ValueError as error:
                if len(self._window) - self._at > LONGEST or not self._more(len(self._window) - self._at):
                    self._refuse(str(error), error)
                continue
            if end == len(self._window) and not self._ended:  # a number may go on
                self._more()
                continue
            self._at = end
            return value

    def _more(self, length: int = 0) -> bool:
        """Reads a further piece, at least as long as what is kept; False at the end of the file."""
        if self._ended:
            return False
        try:
            data = self._file.read(max(_CHUNK, length))
            text = self._utf8.decode(data, final=not data)
        except DAMAGED as error:
            raise ValueError(f"{self._path} is damaged: {error}") from error
        except UnicodeDecodeError as error:
            self._refuse(str(error), error)
        self._window, self._at = self._window[self._at :] + text, 0
        self._ended = not data
        return True

    def _refuse(self, why: str, cause: Exception | None = None) -> NoReturn:
        raise ValueError(f"{self._path} is not valid JSON: {why}") from cause
