"""What a rule needs in order to be checked and told: values by their names, and one sentence for a broken one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from revision.fields import nearest
from revision.schema import Config, Modality, SourceConfig

IMAGE = "<image>"


def require_source(field: str, name: str, known: Mapping[str, SourceConfig], kind: Modality) -> None:
    """Raises ValueError where `name` is none of the known sources, or one of another kind."""
    one_of(field, name, known)
    if known[name].kind is not kind:
        raise broken(
            field, name, f"a source of kind {kind.name}; data.sources.{name} is of kind {known[name].kind.name}"
        )


def one_of(field: str, value: str, names: Iterable[str]) -> None:
    """Raises ValueError where `value` is none of `names`."""
    names = list(names)
    if value not in names:
        listed = f"one of {', '.join(names)}" if names else "a source, but data.sources is empty"
        raise broken(field, value, listed + nearest(value, names))


def value_of(config: Config, name: str) -> Any:
    """The value of a field by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = vars(value)[part]
    return value


def broken(field: str, value: Any, what: str) -> ValueError:
    """The error of a broken rule; `what` goes on after "must be"."""
    return ValueError(f"{field} = {'null' if value is None else value}: must be {what}.")
