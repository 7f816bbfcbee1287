"""Folders that come with the package: `configs` and `data_recipes`, at the root of a checkout or inside a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder or file `name`, such as `configs` or `data_recipes/nano.py`."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name
