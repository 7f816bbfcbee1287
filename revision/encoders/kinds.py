"""Which kinds of encoders there are: ours, and those that other installed packages add by an entry point.

A package adds one by the entry point group `revision.encoders`: the name is what `encoder.kind` says, the object a
`revision.encoders.base.EncoderLoader`. Nothing heavy is imported here, and no package is loaded to learn its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUP = "revision.encoders"

# Our families, and which of the fields that not all have in common each one takes.
BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "open_clip": ("pretrained",),
    "transformers": ("max_length",),
    "llm2clip": ("text_model", "max_length"),
}
_NEEDED: Mapping[str, tuple[str, ...]] = {"llm2clip": ("text_model",)}


def added() -> dict[str, EntryPoint]:
    """The kinds of other packages by name. One that bears the name of one of ours is left out."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def check_kind(kind: str, fields: Mapping[str, Any]) -> None:
    """Holds that a kind exists, takes the fields that are set, and has those that it needs.

    Args:
        kind: as in `encoder.kind`.
        fields: `pretrained`, `text_model`, `max_length` and `options`; None or empty is not set.

    Raises:
        ValueError: names the field, the value and the remedy.
    """
    if kind not in BUILT_IN:
        others = sorted(added())
        if kind not in others:
            known = [*BUILT_IN, *others]
            near = get_close_matches(kind, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(
                f"encoder.kind = {kind}: must be one of {', '.join(known)}{hint}; install the package that adds another"
            )
        return
    for name, value in fields.items():
        if value not in (None, {}) and name not in BUILT_IN[kind]:
            raise ValueError(f"encoder.{name} = {value}: must be null, since the kind {kind} has no use for it")
    for name in _NEEDED.get(kind, ()):
        if fields[name] is None:
            raise ValueError(f"encoder.{name} = null: must be set where encoder.kind is {kind}")
