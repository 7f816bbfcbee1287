"""Alignments by name: unfitted ones from their settings, fitted ones from the folder they were saved in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revision.alignment import files
from revision.alignment.base import Alignment
from revision.alignment.methods import method_class, names


def build_alignment(*, method: str, **settings: Any) -> Alignment:
    """An unfitted alignment by name.

    Args:
        method: one of `revision.alignment.methods.names()`.
        settings: by the names of its constructor's arguments; None stands for the method's own default.

    Raises:
        ValueError: an unknown method, a setting that it does not have, or a value that it refuses.
    """
    cls = method_class(method)
    for name in settings:
        if name not in cls.settings:
            has = f"has {', '.join(cls.settings)}" if cls.settings else "has none"
            raise ValueError(f"alignment method {method} has no setting {name!r}; it {has}")
    return _made(cls, {name: value for name, value in settings.items() if value is not None})


def load_alignment(path: str | Path) -> Alignment:
    """Read an alignment that `Alignment.save` wrote; it applies exactly as the saved one did.

    Args:
        path: folder with `alignment.safetensors` and `alignment.json`.

    Raises:
        ValueError: a file is missing or damaged, the two are of different saves, or the method or one of its parameters
            is unknown here.
    """
    facts, tensors = files.read(Path(path))
    if facts["method"] not in names():
        raise ValueError(
            f"{path} is of alignment method {facts['method']!r}; there are {', '.join(names())} here: install the "
            "package that adds it"
        )
    cls, file = method_class(facts["method"]), Path(path) / files.FACTS_FILE
    for name in facts["parameters"]:
        if name not in cls.settings:
            raise ValueError(
                f"{file} has a parameter {name!r}, which {cls.method} lacks in this version: {files.AGAIN}"
            )
    try:
        alignment = _made(cls, facts["parameters"])
    except ValueError as error:
        raise ValueError(f"{file} has a parameter that {cls.method} refuses ({error}): {files.AGAIN}") from error
    return alignment.restore(facts, tensors)


def _made(cls: type[Alignment], settings: dict[str, Any]) -> Alignment:
    """An unfitted alignment. Raises ValueError also for a class that lacks a default or a method."""
    try:
        return cls(**settings)
    except TypeError as error:
        raise ValueError(
            f"alignment method {cls.method} cannot be made ({error}); its class needs a default for each argument, and "
            "the methods _solve and _map"
        ) from error
