"""Reading a pickle without unpickling it.

Unpickling imports and calls whatever a file names, which is why nobody should do it to a file from elsewhere. Here the
instructions of a pickle are read one by one into descriptions of what it holds. Nothing that it names is imported or
called; the few names by which numpy describes an array are known by their meaning, and any other name is refused. The
bytes of arrays and texts stay in the file: a description says where they lie. The format is that of `pickletools`.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import Any

from revision.embeddings.foreign.described import Array, DamagedError, Dtype, Encoding, Span
from revision.embeddings.foreign.labels import plain


class _Known(Enum):
    """What the admitted names stand for."""

    reconstruct = auto()
    array = auto()
    dtype = auto()
    frombuffer = auto()
    encode = auto()


# numpy 2 renamed `core` to `_core`; the last line is how protocol 2 writes bytes.
_ADMITTED = {
    "numpy.core.multiarray._reconstruct": _Known.reconstruct,
    "numpy._core.multiarray._reconstruct": _Known.reconstruct,
    "numpy.ndarray": _Known.array,
    "numpy.dtype": _Known.dtype,
    "numpy.core.numeric._frombuffer": _Known.frombuffer,
    "numpy._core.numeric._frombuffer": _Known.frombuffer,
    "_codecs.encode": _Known.encode,
}


def describe(data: mmap.mmap, where: Path) -> Any:
    """What a pickle of protocol 2 to 5 holds: lists, dicts, tuples, numbers, `Span` and `Array`.

    Keys of dicts are real texts and numbers. Lists and dicts can be shared between places, as in the pickled object.

    Raises:
        ValueError: it names anything but numpy arrays, is truncated, or is of another protocol; says which.
    """
    return _Machine(data, where).run()


class _Machine:
    """The stack and the memo that the instructions of a pickle work on."""

    def __init__(self, data: mmap.mmap, where: Path) -> None:
        self.data, self.where, self.size = data, where, len(data)
        self.place = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks beneath each mark
        self.memo: dict[int, Any] = {}
        self.keys: dict[int, str] = {}  # of dicts, by where they lie: records share theirs

    def run(self) -> Any:
        """Reads to the end and returns what is on top of the stack."""
        if self.data[:1] != b"\x80":
            raise self.refusal("is no pickle of protocol 2 to 5; write it with pickle.dump and no protocol")
        try:
            while (code := self.data[self.skip(1)]) != _STOP:
                if code == _MEMOIZE:  # a third of all instructions
                    self.memo[len(self.memo)] = self.stack[-1]
                    continue
                step = _STEPS.get(code)
                if step is None:
                    what = _REFUSED.get(code, f"the unknown pickle instruction {code:#04x}")
                    raise self.refusal(f"holds {what}; only {_READ} are read")
                step(self)
            return self.stack.pop()
        except (
            IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError, MemoryError, struct.error,
            DamagedError,
        ) as error:  # fmt: skip
            raise self.refusal(f"is damaged near byte {self.place:,}; write or copy it again") from error

    def refusal(self, what: str) -> ValueError:
        """The error for a file that says what it may not."""
        return ValueError(f"{self.where} {plain(what)}")

    def skip(self, count: int) -> int:
        """Moves on by so many bytes and returns where they start."""
        start = self.place
        self.place = start + count
        if self.place > self.size:
            raise self.refusal(f"is truncated: it ends after {self.size:,} bytes, inside a value; copy it again")
        return start

    def number(self, width: int, *, signed: bool = False) -> int:
        """The integer that the next bytes hold, little end first."""
        start = self.skip(width)
        if width == 1 and not signed:
            return self.data[start]
        return int.from_bytes(self.data[start : start + width], "little", signed=signed)

    def span(self, width: int, encoding: Encoding) -> None:
        """Pushes where a string lies, of which the next bytes are the length and the text."""
        length = self.number(width)
        start = self.skip(length)
        self.stack.append(Span(start, start + length, encoding))

    def line(self) -> str:
        """The text up to the next line break."""
        end = self.data.find(b"\n", self.place)
        start = self.skip((self.size + 1 if end < 0 else end + 1) - self.place)
        return self.data[start:end].decode("utf-8")

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        """Begins a tuple, list or dict whose items follow."""
        self.below.append(self.stack)
        self.stack = []

    def pushed_tuple(self, count: int) -> None:
        """Puts the topmost items into a tuple."""
        items = tuple(self.stack[len(self.stack) - count :])
        if len(items) != count:
            raise IndexError
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def extend(self, items: list[Any]) -> None:
        """Adds items to the list on top."""
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        """Adds keys and values, one after the other, to the dict on top."""
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def key(self, key: Any) -> str | int | float:
        """A key as a plain value; a string is read from where it lies, once."""
        if isinstance(key, Span):
            found = self.keys.get(key.start)
            if found is None:
                found = self.keys[key.start] = key.text(self.data)
            return found
        if isinstance(key, int | float):
            return key
        raise self.refusal("has a dict whose keys are neither texts nor numbers; write one with ids as keys")

    def named(self, module: str, name: str) -> None:
        """Pushes what stands for an admitted global, and refuses any other."""
        known = _ADMITTED.get(f"{module}.{name}")
        if known is None:
            raise self.refusal(
                f"names the forbidden global {module}.{name}, which unpickling would import; only {_READ} are read"
            )
        self.stack.append(known)

    def stack_global(self) -> None:
        """As `named`, with both names from the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        self.named(module.text(self.data), name.text(self.data))

    def reduce(self) -> None:
        """A call, of which only those that describe an array have a meaning here."""
        args, called = self.stack.pop(), self.stack.pop()
        match called, args:
            case _Known.reconstruct, (_Known.array, tuple(), _):
                self.stack.append(Array())
            case _Known.dtype, (Span() as code, *_):
                self.stack.append(Dtype(self.code(code.text(self.data))))
            case _Known.encode, (Span(encoding=Encoding.text) as span, Span() as codec) if (
                codec.text(self.data) == "latin1"
            ):
                self.stack.append(Span(span.start, span.stop, Encoding.latin))
            case _Known.frombuffer, (Span() as span, Dtype() as dtype, tuple() as shape, Span() as order):
                self.stack.append(self.filled(Array(), dtype, shape, order.text(self.data) == "F", span))
            case _:
                raise self.refusal(f"calls {called} in a way that numpy does not when it writes an array")

    def build(self) -> None:
        """The state of an array or a dtype."""
        state, target = self.stack.pop(), self.stack[-1]
        match target, state:
            case Array(data=None), (1, tuple() as shape, Dtype() as dtype, bool() | int() as fortran, Span() as span):
                self.filled(target, dtype, shape, bool(fortran), span)
            case Dtype(), (_, Span() as order, None, None, None, *_):
                target.order = order.text(self.data)
                if target.order not in ("<", ">", "=", "|"):
                    raise TypeError
            case Array(), (1, _, Dtype(), _, list()):
                raise self.refusal("holds an object array, which can hold anything; write arrays of numbers")
            case _:
                raise self.refusal("gives an array a state that numpy does not give it, such as fields; write floats")

    def code(self, code: str) -> str:
        """A dtype's code, if it is one of plain numbers or texts."""
        if code.startswith("O"):
            raise self.refusal("holds an object array, which can hold anything; write arrays of numbers")
        if not re.fullmatch(r"[fiu][1248]|U\d{1,6}", code):
            raise self.refusal(f"holds an array of dtype {code!r}; arrays of floats, whole numbers and texts are read")
        return code

    def filled(self, target: Array, dtype: Dtype, shape: tuple[Any, ...], fortran: bool, span: Span) -> Array:
        """An array that gets its type, shape and bytes."""
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise TypeError
        target.dtype, target.shape, target.fortran, target.data = dtype.resolve(), shape, fortran, span
        wanted, found = math.prod(shape) * target.dtype.itemsize, span.stop - span.start
        if found != wanted if span.encoding is Encoding.raw else not wanted <= found <= 2 * wanted:
            raise self.refusal(f"holds an array of shape {shape} in {found:,} bytes where {wanted:,} are due")
        return target

    def memoize(self, number: int) -> None:
        """Keeps the top of the stack under a number."""
        self.memo[number] = self.stack[-1]

    def push(self, value: Any) -> None:
        """Pushes a value."""
        self.stack.append(value)

    def float64(self) -> None:
        """Pushes a float, big end first."""
        start = self.skip(8)
        self.stack.append(struct.unpack(">d", self.data[start : start + 8])[0])


_READ = "numpy arrays, lists, dicts, tuples, texts and numbers"
_STOP = ord(".")
_MEMOIZE = 0x94
_STEPS: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.skip(1),  # the protocol
    0x95: lambda m: m.skip(8),  # a frame
    0x98: lambda m: None,  # read-only buffer
    ord("("): lambda m: m.mark(),
    ord("0"): lambda m: m.stack.pop() if m.stack else m.marked(),
    ord("1"): lambda m: m.marked(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number(4, signed=True)),
    ord("K"): lambda m: m.stack.append(m.data[m.skip(1)]),
    ord("M"): lambda m: m.push(m.number(2)),
    0x8A: lambda m: m.push(m.number(m.number(1), signed=True)),
    0x8B: lambda m: m.push(m.number(m.number(4), signed=True)),
    ord("G"): lambda m: m.float64(),
    ord("X"): lambda m: m.span(4, Encoding.text),
    0x8C: lambda m: m.span(1, Encoding.text),
    0x8D: lambda m: m.span(8, Encoding.text),
    ord("B"): lambda m: m.span(4, Encoding.raw),
    ord("C"): lambda m: m.span(1, Encoding.raw),
    0x8E: lambda m: m.span(8, Encoding.raw),
    0x96: lambda m: m.span(8, Encoding.raw),
    ord("U"): lambda m: m.span(1, Encoding.raw),  # Python 2's str
    ord("T"): lambda m: m.span(4, Encoding.raw),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.marked()),
    ord("a"): lambda m: m.extend([m.stack.pop()]),
    ord("e"): lambda m: m.extend(m.marked()),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.marked())),
    0x85: lambda m: m.pushed_tuple(1),
    0x86: lambda m: m.pushed_tuple(2),
    0x87: lambda m: m.pushed_tuple(3),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.update([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.update(m.marked()),
    ord("q"): lambda m: m.memoize(m.number(1)),
    ord("r"): lambda m: m.memoize(m.number(4)),
    ord("h"): lambda m: m.stack.append(m.memo[m.data[m.skip(1)]]),
    ord("j"): lambda m: m.push(m.memo[m.number(4)]),
    ord("c"): lambda m: m.named(m.line(), m.line()),
    0x93: lambda m: m.stack_global(),
    ord("R"): lambda m: m.reduce(),
    ord("b"): lambda m: m.build(),
}
_REFUSED = {
    0x8F: "a set", 0x91: "a set", 0x81: "an object of a class", 0x92: "an object of a class",
    ord("i"): "an object of a class", ord("o"): "an object of a class", ord("P"): "a persistent reference",
    ord("Q"): "a persistent reference", 0x82: "an extension code", 0x83: "an extension code",
    0x84: "an extension code", 0x97: "a buffer that lies outside of it",
}  # fmt: skip
