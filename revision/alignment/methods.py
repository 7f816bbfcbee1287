"""The alignments by name. To add one: its file beside this one, its line in METHODS, and one config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revision.alignment import files
from revision.alignment.base import Alignment
from revision.alignment.blockwise import Blockwise
from revision.alignment.diagonal import Diagonal
from revision.alignment.quantile import Quantile
from revision.alignment.realign import ReAlign
from revision.alignment.residual import ResidualNoise
from revision.alignment.shift import C3, MeanShift, NoAlignment, Unicorn
from revision.alignment.transport import GaussianOT, ShrunkOT

METHODS: dict[str, type[Alignment]] = {
    cls.method: cls
    for cls in (
        NoAlignment,
        MeanShift,
        C3,
        ReAlign,
        Unicorn,
        Blockwise,
        Diagonal,
        Quantile,
        GaussianOT,
        ShrunkOT,
        ResidualNoise,
    )
}


def build_alignment(*, method: str, **settings: Any) -> Alignment:
    """An unfitted alignment by name; each method takes the settings it knows.

    Args:
        method: a key of METHODS.
        settings: settings of any of the methods, by the names of their constructors' arguments. None stands for the
            method's own default.

    Raises:
        ValueError: unknown method, a setting that no method knows, or a value that its class refuses.
    """
    if method not in METHODS:
        raise ValueError(f"alignment method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    known = sorted({name for cls in METHODS.values() for name in cls.settings})
    for name in settings:
        if name not in known:
            raise ValueError(f"alignment setting {name!r} is unknown; choose among {', '.join(known)}")
    cls = METHODS[method]
    return cls(**{name: settings[name] for name in cls.settings if settings.get(name) is not None})


def load_alignment(path: str | Path) -> Alignment:
    """Read an alignment that `Alignment.save` wrote; it applies exactly as the saved one did.

    Args:
        path: folder with `alignment.safetensors` and `alignment.json`.

    Raises:
        ValueError: a file is missing or damaged, the two are of different saves, or the method or one of its parameters
            is unknown here.
    """
    facts, tensors = files.read(Path(path))
    if facts["method"] not in METHODS:
        raise ValueError(f"{path} is of alignment method {facts['method']!r}; this version knows {', '.join(METHODS)}")
    cls, file = METHODS[facts["method"]], Path(path) / files.FACTS_FILE
    for name in facts["parameters"]:
        if name not in cls.settings:
            raise ValueError(
                f"{file} has a parameter {name!r}, which {cls.method} lacks in this version: {files.AGAIN}"
            )
    try:
        alignment = cls(**facts["parameters"])
    except ValueError as error:
        raise ValueError(f"{file} has a parameter that {cls.method} refuses ({error}): {files.AGAIN}") from error
    return alignment.restore(facts, tensors)
