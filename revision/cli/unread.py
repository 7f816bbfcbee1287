"""Settings typed on the command line that nothing would read; files may set what they like.

A shared file serves many runs, so what it holds for others is no mistake. What somebody types is meant for this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from revision.alignment.methods import settings_of
from revision.cli.composition import ROOT, ConfigError
from revision.schema import MODEL_STEPS, AlignmentConfig

_SWAPPED = {"experiment", "alignment", "alignment.method", "gap.compare"}  # what decides on which settings are read


def refuse_unread(hydra: Hydra, overrides: Sequence[str], composed: DictConfig, multirun: bool = False) -> None:
    """Hold that each setting of `trainer` and of `alignment` that is typed has a reader.

    A job of a sweep or a step of `run` is left alone: its line was written by what started it.

    Args:
        hydra: where `composed` comes from.
        overrides: as they were checked.
        composed: without what is swept.
        multirun: the overrides are those of a sweep; in one over alignments or experiments, some job may read them.

    Raises:
        ConfigError: names the fields that are read in its place.
    """
    if "hydra.mode=RUN" in overrides:
        return
    parsed = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(overrides))
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    if multirun:
        settings = hydra.compose_config(ROOT, list(overrides), RunMode.MULTIRUN, validate_sweep_overrides=False)
        swept |= {*(settings.hydra.sweeper.get("params") or {})}
    for override in parsed:
        section, _, field = override.key_or_group.partition(".")
        said = f"'{str(override.input_line).lstrip('+')}' on the command line"
        if section == "trainer" and field and "experiment" not in swept:
            _require_stage(said, field.split(".")[0], composed)
        elif section == "alignment" and field and not swept & _SWAPPED and not _is_null(override):
            _require_method(said, field, composed)


def _require_stage(said: str, key: str, composed: DictConfig) -> None:
    """Hold that a key of the shared mapping is not set anew by both stages."""
    if all(key in composed[stage].trainer for stage in MODEL_STEPS):
        own = " and ".join(f"{stage}.trainer.{key}" for stage in MODEL_STEPS)
        raise ConfigError(f"{said}: no stage reads trainer.{key}, since both have a value of their own; set {own}.")


def _require_method(said: str, name: str, composed: DictConfig) -> None:
    """Hold that a setting is one of the method's, or of those that `gap` compares it with."""
    if name.split(".")[0] in ("method", "options"):  # the rules look at options wherever they come from
        return
    methods = list(dict.fromkeys([composed.alignment.method, *composed.gap.compare]))
    read = [known for method in methods for known in _fields_of(method)]
    if name not in read:
        theirs = ", ".join(dict.fromkeys(f"alignment.{known}" for known in read)) or "no field of alignment"
        raise ConfigError(
            f"{said}: {' and '.join(methods)} {'read' if methods[1:] else 'reads'} {theirs}; leave it out."
        )


def _fields_of(method: str) -> Iterator[str]:
    known = {field.name for field in fields(AlignmentConfig)}
    yield from (name for name in settings_of(method) if name in known)


def _is_null(override: Override) -> bool:
    return not override.is_sweep_override() and override.value() is None
