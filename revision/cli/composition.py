"""From a command line to a checked `Config`: Hydra composes, and every mistake becomes one sentence.

Hydra and OmegaConf find most mistakes themselves, but report them over several lines in words of their own. Overrides
are therefore checked against the schema before Hydra sees them; what it then finds lies in a file, and `explain` says
so. Nothing heavier than Hydra is imported.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from revision.alignment.methods import require_method
from revision.cli.loading import Loader
from revision.fields import OPEN_MAPPINGS, fields_of, names_of, nearest, rule, type_at
from revision.rules import check
from revision.schema import Config, SourceConfig
from revision.shipped import shipped

ROOT = "config"

# What Hydra raises while it composes files.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


class ConfigError(ValueError):
    """A mistake in the configuration, told in one sentence; the command line ends with exit code 2."""


@contextmanager
def open_hydra(command: str, config_dir: str | None) -> Iterator[Hydra]:
    """Hydra over the shipped configs and, where given, a folder of the user's own.

    Raises:
        ConfigError: the folder does not exist.
    """
    version.setbase("1.3")
    ConfigStore.instance().store(name="schema", node=Config)
    search_path = create_config_search_path(str(shipped("configs")))
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a folder: give one that holds config groups.")
        search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    try:
        hydra = Hydra(command, Loader(search_path))
        GlobalHydra.instance().initialize(hydra)
        yield hydra
    finally:
        GlobalHydra.instance().clear()


def typed(composed: DictConfig) -> Config:
    """The composed tree as a `Config`, complete and consistent.

    Raises:
        ConfigError: a mandatory field has no value, an interpolation leads nowhere, or a rule between fields is broken.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(
                f"{missing[0]} has no value: it must be {rule(type_at(missing[0]))}; "
                f"set it with {missing[0]}=... or choose a group option that has it."
            )
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error)) from error
    assert isinstance(config, Config)
    try:
        check(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config


def compose(hydra: Hydra, overrides: Sequence[str], multirun: bool = False) -> DictConfig:
    """The composed tree without Hydra's own part; in a multirun, also without the overrides that are swept.

    Raises:
        ConfigError: a config file that is not there, is not YAML, or disagrees with the schema.
    """
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    try:
        composed = hydra.compose_config(
            ROOT, list(overrides), mode, with_log_configuration=False, validate_sweep_overrides=False
        )
        return hydra.get_sanitized_cfg(composed, "job")
    except COMPOSITION_ERRORS as error:
        raise ConfigError(explain(hydra, error)) from error


def asks_for_sweep(hydra: Hydra, overrides: Sequence[str]) -> bool:
    """Whether a file or an override says `hydra.mode=MULTIRUN`, as an experiment that is a sweep does."""
    try:
        mode = hydra.compose_config(ROOT, list(overrides), RunMode.RUN, validate_sweep_overrides=False).hydra.mode
    except COMPOSITION_ERRORS:  # as where the sweep is to fill in a group; Hydra then leaves that group out
        mode = hydra.get_mode(ROOT, list(overrides))
    return bool(mode == RunMode.MULTIRUN)


def refuse_sweeps(overrides: Sequence[str]) -> None:
    """Hold that every override has one value.

    Raises:
        ConfigError: `seed=0,1` outside of a sweep.
    """
    for text in overrides:
        if OverridesParser.create().parse_override(text).is_sweep_override():
            said = f"'{text.lstrip('+')}' on the command line holds several values"
            raise ConfigError(f"{said}: add -m to sweep over them, or write [...] for a list.")


def refuse_intervals(overrides: Sequence[str]) -> None:
    """Hold that every sweep can be listed, where all its values are to run.

    Raises:
        ConfigError: `a=interval(0.1,0.9)` in a grid.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            said = f"'{str(override.input_line).lstrip('+')}' on the command line has no end of values for a grid"
            raise ConfigError(f"{said}: set search.trials to search it, or list values.")


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
            raise ConfigError(f"'{text}' on the command line is not an override: write field=value.") from error
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
        new_key = not is_group and not override.is_delete() and _in_open_mapping(override.key_or_group)
        checked.append(("++" if new_key else "") + text.lstrip("+"))
    return checked


def explain(hydra: Hydra, error: Exception) -> str:
    """One sentence for what Hydra found while composing: where, field, value, rule, nearest name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        where = _file_that_asks_for(hydra, group, option)
        return f"{where}: {_no_option(group, option, list(error.options or []))}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: not valid YAML ({error.problem})."
    file = re.match(r"In '?([^':]+)'?: ", str(error))
    override = re.match(r"(?:Error merging override|Could not override) '?([^\s']+)", str(error))
    where = _file(hydra, file[1]) if file else f"override '{override[1]}'" if override else "the composed configuration"
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OmegaConfBaseException):
            return f"{where}: {_sentence(cause)}"
    unknown = re.search(r"Could not override '([^']+)'\. No match", str(error))
    if unknown:
        return f"{where}: no group is named '{unknown[1]}'{nearest(unknown[1], hydra.list_all_config_groups())}."
    return " ".join(str(error).split())


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
                raise ConfigError(_no_option(group, name, options(group)))


def _in_open_mapping(name: str) -> bool:
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
        if not _in_open_mapping(name):
            raise ConfigError(f"{name} cannot be removed: give it another value instead.")
        return
    for value in _values(override):
        tree = copy.deepcopy(_part_with(re.split(r"[.\[]", name)[0]))
        if name.startswith("data.sources."):
            tree.data.sources[name.split(".")[2]] = SourceConfig()  # whether it is there, Hydra finds
        try:
            OmegaConf.update(tree, name, value, merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(_sentence(error, name, value)) from error
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


def _sentence(error: OmegaConfBaseException, name: str = "", value: Any = None) -> str:
    """What an error of OmegaConf means; `name` and `value` where it does not know them."""
    name = re.sub(r"\[\d+\]$", "", error.full_key or name)
    said: Any = error.value if error.value is not None else value
    merged = re.search(r"is not a subclass of (\w+)\. value: (.*)", str(error))
    if not name and merged:
        name, said = " or ".join(fields_of(merged[1])), merged[2]
    if isinstance(error, InterpolationResolutionError):
        return f"{name}: its interpolation does not resolve ({str(error).splitlines()[0]})."
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _not_there(name)
    if not name:
        return "the file must be a mapping of fields."
    hint = type_at(name.split(" or ")[0])
    equals = "" if said is None else f" = {said}"
    return f"{name}{equals}: must be {rule(hint)}{nearest(str(said), names_of(hint))}."


def _not_there(name: str) -> str:
    if name.startswith("hydra"):
        return f"Hydra has no setting '{name}'; see `--hydra-help`."
    try:
        type_at(name)
    except KeyError as unknown:
        return f"{unknown.args[0]}."
    if name.startswith("data.sources."):
        whole = f"data.sources={{{name.split('.')[2]}: {{kind: ..., records: ...}}}}"
        return f"{name} is not there yet: add the source whole, with {whole}."
    return f"{name} is not there yet: add it with ++{name}=..."


def _no_option(group: str, option: str, options: Sequence[str]) -> str:
    known = ", ".join(options) if options else "none"
    extra = " Launchers of Hydra come with `pip install 'revision-mllm[sweeps]'`." if group == "hydra/launcher" else ""
    return f"group '{group}' has no option '{option}'{nearest(option, options)}; it has: {known}.{extra}"


def _folders(hydra: Hydra) -> list[Path]:
    return [Path(source.path) for source in hydra.config_loader.get_sources() if source.scheme() == "file"]


def _file(hydra: Hydra, config: str) -> str:
    """The file behind a config's name such as `alignment/c3`."""
    return next((str(path) for folder in _folders(hydra) if (path := folder / f"{config}.yaml").is_file()), config)


def _file_that_asks_for(hydra: Hydra, group: str, option: str) -> str:
    """The file whose defaults list chooses `option`: Hydra blames the root for all of them."""
    wanted = re.compile(rf"^\s*-.*\b{re.escape(group)}\s*:\s*['\"]?{re.escape(option)}\b", re.MULTILINE)
    files = (path for folder in _folders(hydra) for path in sorted(folder.rglob("*.yaml")))
    return next((str(path) for path in files if wanted.search(path.read_text(encoding="utf-8"))), "a defaults list")
