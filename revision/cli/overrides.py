"""Overrides of the command line, each held against the schema before Hydra sees it.

Hydra would find most of these mistakes too, but reports them over several lines in words of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, get_type_hints

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from revision.alignment.methods import require_method
from revision.cli.composition import ROOT, ConfigError
from revision.cli.explaining import no_option, sentence
from revision.cli.quoting import corrected
from revision.fields import OPEN_MAPPINGS, alternatives, type_at
from revision.schema import Config, SourceConfig


def check_overrides(hydra: Hydra, overrides: Sequence[str]) -> list[str]:
    """The overrides in the form that Hydra needs; names, values and every value of a sweep have been checked.

    New keys of open mappings (`trainer.*`) need no `+`, and `+` does no harm anywhere.

    Raises:
        ConfigError: an override that names nothing, or a value that its field cannot hold.
    """
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    further = [text for text in overrides if text.startswith("hydra.searchpath=")]
    options = partial(hydra.config_loader.get_group_options, config_name=ROOT, overrides=further)
    checked = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
            override.config_loader = hydra.config_loader  # for glob(...)
        except HydraException as error:
            raise ConfigError(f"'{text}' on the command line{_unreadable(text, options)}") from error
        if override.is_hydra_override():
            checked.append(text)
            continue
        if not override.key_or_group:
            raise ConfigError(f"'{text}' on the command line names no field: write field=value.")
        try:
            is_group = "." not in override.key_or_group and bool(options(override.key_or_group))
            if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
                _check_glob(options(override.key_or_group), override)
            if is_group and not any(isinstance(value, dict) for value in _values(override)):
                _check_option(options, override)
            else:
                _check_field(override)
        except ConfigError as error:
            raise ConfigError(f"'{text}' on the command line: {error}") from error
        new_key = not is_group and not override.is_delete() and in_open_mapping(override.key_or_group)
        checked.append(("++" if new_key else "") + text.lstrip("+"))
    return checked


def refuse_sweeps(overrides: Sequence[str], shown: bool = False) -> None:
    """Hold that every override has one value.

    Args:
        overrides: as they were checked.
        shown: a configuration is shown in place of a run, which -m does not change.

    Raises:
        ConfigError: `seed=0,1` outside of a sweep.
    """
    for text in overrides:
        if OverridesParser.create().parse_override(text).is_sweep_override():
            said, (name, _, value) = f"'{text.lstrip('+')}' on the command line", text.lstrip("+").partition("=")
            one = "write [...] for a list"
            if _holds_text(name):
                one = f"quote it: in a shell, {corrected(name, value)}"
            if shown:
                raise ConfigError(f"{said} holds several values, and --cfg, --help and --info show one job: give one.")
            raise ConfigError(f"{said} holds several values: add -m to sweep over them, or {one}.")


def refuse_intervals(overrides: Sequence[str]) -> None:
    """Hold that every sweep can be listed, where all its values are to run.

    Raises:
        ConfigError: `a=interval(0.1,0.9)` in a grid.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            said = f"'{str(override.input_line).lstrip('+')}' on the command line has no end of values for a grid"
            raise ConfigError(f"{said}: set search.trials to search it, or list values.")


def _holds_text(name: str) -> bool:
    """Whether a field, rather than a group, may be one text."""
    try:
        return str in alternatives(type_at(name))
    except KeyError:
        return False


def _unreadable(text: str, options: Callable[[str], list[str]]) -> str:
    """What is wrong with a text that is no override for Hydra, after "on the command line"."""
    found = re.fullmatch(r"\+{0,2}([\w.@/-]+)=(.+)", text, re.DOTALL)
    if found is None:
        return " is not an override: write field=value."
    name, value = found[1], found[2]
    if "." not in name and options(name):
        return f": {no_option(name, value, options(name))}"
    if not re.match(r"hydra\b", name):
        try:
            type_at(name)
        except KeyError as error:
            return f": {error.args[0]}."
    return (
        f": the value has characters that Hydra reads itself; in a shell, type {corrected(name, value)} in its place."
    )


def _values(override: Override) -> Iterator[Any]:
    """The value of an override, or each value of a sweep that can be listed."""
    if not override.is_sweep_override():
        yield override.value()
    elif override.is_discrete_sweep():
        yield from map(Override._convert_value, override.sweep_iterator())


def _check_glob(known: Sequence[str], override: Override) -> None:
    """Hydra makes a sweep without jobs of a pattern that fits nothing, and says nothing."""
    group = override.key_or_group
    if not known:
        raise ConfigError(
            f"glob(...) chooses among the files of a group, which {group} is not: list its values instead."
        )
    if not [*_values(override)]:
        raise ConfigError(f"group '{group}' has no option of such a name; it has: {', '.join(known)}.")


def _check_option(options: Callable[[str], list[str]], override: Override) -> None:
    group = override.key_or_group
    if override.is_delete():
        raise ConfigError(f"group '{group}' cannot be removed: choose one of its options instead.")
    for value in _values(override):
        for option in value if isinstance(value, list) else [value]:
            name = "null" if option is None else str(option)
            folder, _, leaf = f"{group}/{name}".rpartition("/")
            if leaf not in options(folder):
                raise ConfigError(no_option(group, name, options(group)))


def in_open_mapping(name: str) -> bool:
    """Whether a name is a key that the schema leaves free, or the mapping of sources, to which whole ones are added."""
    if re.match(r"data\.(sources\.\w+\.fields|conversation_fields)(\.|$)", name):
        return True
    return name == "data.sources" or any(name.startswith(f"{mapping}.") for mapping in OPEN_MAPPINGS)


def _check_field(override: Override) -> None:
    name = override.key_or_group
    try:
        type_at(name)
    except KeyError as error:
        raise ConfigError(f"{error.args[0]}.") from error
    if override.is_delete():
        if not in_open_mapping(name):
            raise ConfigError(f"{name} cannot be removed: give it another value instead.")
        return
    for value in _values(override):
        tree = copy.deepcopy(_part_with(re.split(r"[.\[]", name)[0]))
        if name.startswith("data.sources."):
            tree.data.sources[name.split(".")[2]] = SourceConfig()  # whether it is there, Hydra finds
        try:
            OmegaConf.update(tree, name, value, merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(sentence(error, name, value)) from error
        if name == "alignment.method":  # a name that packages can add, so no enum says which there are
            try:
                require_method(str(value), name)
            except ValueError as error:
                raise ConfigError(str(error)) from error


@cache
def _part_with(section: str) -> DictConfig:
    """The root of the schema with one field alone: what a value of that field is held against in little time."""
    [one] = (one for one in dataclasses.fields(Config) if one.name == section)
    default = {name: getattr(one, name) for name in ("default", "default_factory")}
    whole = dataclasses.field(**{name: how for name, how in default.items() if how is not dataclasses.MISSING})
    part = dataclasses.make_dataclass("Config", [(section, get_type_hints(Config)[section], whole)])
    tree: DictConfig = OmegaConf.structured(part)  # to be copied: a tenth of the time that building one takes
    return tree
