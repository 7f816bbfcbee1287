"""Values of an alignment's settings as numbers of Python, which its JSON file can hold; or one sentence."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def number(name: str, value: Any) -> float:
    """A real number as float.

    Raises:
        ValueError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}={value!r} must be a number")
    return float(value)


def whole(name: str, value: Any) -> int:
    """A whole number as int.

    Raises:
        ValueError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}={value!r} must be a whole number")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        ValueError: something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False")
    return value
