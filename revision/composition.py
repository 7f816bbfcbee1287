"""From a command line to a checked `Config`: Hydra composes, and every mistake becomes one sentence.

Hydra and OmegaConf find most mistakes themselves but report them in several lines of their own vocabulary. Overrides
are therefore checked against the schema before Hydra sees them; what Hydra then finds lies in a file, and `explain`
rewrites it. Nothing heavier than Hydra is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from revision.fields import OPEN_MAPPINGS, FieldType, field_at, nearest, rule
from revision.rules import check
from revision.schema import Config
from revision.shipped import shipped

ROOT = "config"
SCHEMA = "schema"

# What Hydra may raise while it composes. A ValueError of a command never meets this tuple: composing comes first.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


class ConfigError(ValueError):
    """A mistake in the configuration, told in one sentence; the command line ends with exit code 2."""


def open_hydra(command: str, config_dir: str | None) -> Hydra:
    """Hydra over the shipped configs and, where given, a folder of the user's own.

    Raises:
        ConfigError: the folder does not exist.
    """
    version.setbase("1.3")
    ConfigStore.instance().store(name=SCHEMA, node=Config)
    search_path = create_config_search_path(str(shipped("configs")))
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a folder: give one that holds config groups.")
        search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    return Hydra.create_main_hydra2(task_name=command, config_search_path=search_path)


def typed(composed: DictConfig) -> Config:
    """The composed tree as a `Config`, complete and consistent.

    Raises:
        ConfigError: a mandatory field has no value, an interpolation leads nowhere, or a rule between fields is broken.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        name = missing[0]
        raise ConfigError(f"{name} has no value: set it with {name}=... or choose a group option that has it.")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(_broken_interpolation(error)) from error
    assert isinstance(config, Config)
    try:
        check(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config


def check_overrides(hydra: Hydra, overrides: Sequence[str], multirun: bool) -> list[str]:
    """Overrides as Hydra needs them, each checked for its field or group, its value, and every value of a sweep.

    `trainer.*` and `data.sources.*` are open mappings: new keys need no `+` there, and `+` is allowed anywhere.

    Raises:
        ConfigError: an override that names nothing, or a value its field cannot hold.
    """
    checked = []
    for text in overrides:
        try:
            override = OverridesParser.create(config_loader=hydra.config_loader).parse_override(text)
        except OverrideParseException as error:
            raise ConfigError(f"'{text}' on the command line is not an override: write field=value.") from error
        if override.is_sweep_override() and not multirun and not override.is_hydra_override():
            raise ConfigError(
                f"'{text}' on the command line gives several values: add -m for a sweep, or [...] for one list."
            )
        if override.is_hydra_override():
            checked.append(text)
        elif hydra.config_loader.get_group_options(override.key_or_group) and not _is_mapping(override):
            _check_group(hydra, override, text)
            checked.append(text.lstrip("+"))
        else:
            checked.append(_check_field(hydra, override, text))
    return checked


def explain(hydra: Hydra, error: Exception) -> str:
    """One sentence for what Hydra found while composing files: where, field, value, rule, nearest name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{_mention(hydra, error.missing_cfg_file)}: {_no_option(group, option, list(error.options or []))}"
    cause = error.__cause__ or error.__context__ or error
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem})."
    if isinstance(cause, InterpolationResolutionError):
        return _broken_interpolation(cause)
    found = re.search(r"In '([^']+)'", str(error))
    where = f"{_file(hydra, found[1])}: " if found else ""
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        return where + _wrong_field(cause)
    return where + " ".join(re.sub(r"^In '[^']+': ", "", str(error)).split())


def _is_mapping(override: Override) -> bool:
    return not override.is_sweep_override() and isinstance(override.value(), dict)


def _values(override: Override) -> Iterator[Any]:
    """The value of an override, or each value of a sweep that can be listed."""
    if not override.is_sweep_override():
        yield override.value()
    elif override.is_discrete_sweep():
        for value in override.sweep_iterator():
            yield Override._convert_value(value)


def _check_group(hydra: Hydra, override: Override, text: str) -> None:
    group = override.key_or_group
    if override.is_delete():
        raise ConfigError(f"'{text}' on the command line removes a group: choose one of its options instead.")
    for value in _values(override):
        names = value if isinstance(value, list) else [value]
        for name in names:
            if not isinstance(name, str) or not hydra.config_loader.repository.config_exists(f"{group}/{name}"):
                options = hydra.config_loader.get_group_options(group)
                raise ConfigError(f"'{text}' on the command line: {_no_option(group, str(name), options)}")


def _check_field(hydra: Hydra, override: Override, text: str) -> str:
    name = override.key_or_group
    opened = next((mapping for mapping in OPEN_MAPPINGS if name.startswith(f"{mapping}.")), None)
    if override.is_delete():
        if opened is None:
            raise ConfigError(f"'{text}' on the command line removes a field: give it another value instead.")
        return text
    try:
        field = field_at(name)
    except KeyError as error:
        groups = hydra.list_all_config_groups()
        near = nearest(name, [group for group in groups if not group.startswith("hydra")])
        raise ConfigError(f"'{text}' on the command line: {error.args[0]}{near if '.' not in name else ''}.") from error
    for value in _values(override):
        _try_value(name, field, value, text)
    return f"++{text.lstrip('+')}" if opened is not None else text.lstrip("+")


def _try_value(name: str, field: FieldType, value: Any, text: str) -> None:
    tree = OmegaConf.create({"value": field.blank()})
    try:
        OmegaConf.update(tree, "value", value, merge=True)
    except ConfigKeyError as error:
        raise ConfigError(f"'{text}' on the command line: {_wrong_field(error, prefix=name)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"'{text}' on the command line: {_wrong_field(error, prefix=name, value=value)}") from error
