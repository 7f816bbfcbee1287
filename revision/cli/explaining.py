"""What Hydra and OmegaConf find, told in one sentence: where, field, value, rule, nearest name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra._internal.hydra import Hydra
from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from revision.fields import fields_of, names_of, nearest, rule, type_at
from revision.schema import Config

_PACKAGE = "its first line must be `# @package _global_`"


def explain(hydra: Hydra, error: Exception) -> str:
    """One sentence for what Hydra found while composing: where, field, value, rule, nearest name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        parent, _, leaf = group.rpartition("/")
        if not error.options and leaf in hydra.list_all_config_groups():
            file_beside = _file_with(hydra, _choice(leaf, option)) or f"a file of {parent}/"
            return f"{file_beside}: {_from_the_root(parent, leaf, option)}"
        where = _file_that_asks_for(hydra, group, option)
        return f"{where}: {no_option(group, option, list(error.options or []))}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: not valid YAML ({error.problem})."
    if twice := re.match(r"Multiple values for (\S+)\. To override a value use 'override [^:']+: ([^']+)'", str(error)):
        file_of_both = _file_with(hydra, _choice(f"/?{twice[1]}", twice[2])) or "a defaults list"
        return f"{file_of_both}: {twice[1]} has been chosen before; write `- override /{twice[1]}: {twice[2]}`."
    file = re.match(r"In '?([^':]+)'?: ", str(error))
    override = re.match(r"(?:Error merging override|Could not override) '?([^\s']+)", str(error))
    where = _file(hydra, file[1]) if file else f"override '{override[1]}'" if override else "the composed configuration"
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OmegaConfBaseException):
            if file and (said := _without_package(file[1], cause)):
                return f"{where}: {said}"
            return f"{where}: {sentence(cause)}"
    unknown = re.search(r"Could not override '([^']+)'\. No match", str(error))
    below = re.search(r"Could not override '[^'@]*@(\w+)\.", str(error))
    if file and below and below[1] == file[1].split("/")[0]:
        return f"{where}: {_PACKAGE}."
    if unknown:
        beside = re.fullmatch(r"(.+)/([^/@]+)@.*", unknown[1])
        if beside and beside[2] in hydra.list_all_config_groups():
            return f"{where}: {_from_the_root(beside[1], beside[2], '...')}"
        return f"{where}: no group is named '{unknown[1]}'{nearest(unknown[1], hydra.list_all_config_groups())}."
    return " ".join(str(error).split())


def _without_package(config: str, cause: OmegaConfBaseException) -> str | None:
    """What to say where the fields of a file landed below its group, since it does not say that they are the root's."""
    if not isinstance(cause, ConfigKeyError | ConfigAttributeError) or "/" not in config:
        return None
    group, (first, *rest) = config.split("/")[0], str(cause.full_key).split(".")
    if first != group or group in rest[1:]:
        return None
    if not rest:  # a group such as `experiment`, which is no section of the configuration
        return f"{_PACKAGE}."
    if rest[0] == group:
        return f"{_PACKAGE}, or else its fields must stand without `{group}:` above them."
    if rest[0] in get_type_hints(Config):
        return f"{_PACKAGE}, since it sets {rest[0]}, which is no field of {group}."
    return None


def _from_the_root(parent: str, group: str, option: str) -> str:
    line = f"- override /{group}: {option}"
    return f"a group that does not lie in {parent}/ is written with a slash before it: write `{line}`."


def _choice(group: str, option: str) -> str:
    """The pattern of a line of a defaults list that chooses without `override`."""
    return rf"\s*-\s*{group}\s*:\s*['\"]?{re.escape(option)}\b"


def sentence(error: OmegaConfBaseException, name: str = "", value: Any = None) -> str:
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


def no_option(group: str, option: str, options: Sequence[str]) -> str:
    """That a group has no such option, with the nearest."""
    known = ", ".join(options) if options else "none"
    extra = " Launchers of Hydra come with `pip install 'revision-mllm[sweeps]'`." if group == "hydra/launcher" else ""
    return f"group '{group}' has no option '{option}'{nearest(option, options)}; it has: {known}.{extra}"


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


def _folders(hydra: Hydra) -> list[Path]:
    return [Path(source.path) for source in hydra.config_loader.get_sources() if source.scheme() == "file"]


def _file(hydra: Hydra, config: str) -> str:
    """The file behind a config's name such as `alignment/c3`."""
    return next((str(path) for folder in _folders(hydra) if (path := folder / f"{config}.yaml").is_file()), config)


def _file_that_asks_for(hydra: Hydra, group: str, option: str) -> str:
    """The file whose defaults list chooses `option`: Hydra blames the root for all of them."""
    return _file_with(hydra, rf"\s*-.*\b{re.escape(group)}\s*:\s*['\"]?{re.escape(option)}\b") or "a defaults list"


def _file_with(hydra: Hydra, line: str) -> str | None:
    """The first file in which a line begins as the pattern says."""
    wanted = re.compile(rf"^{line}", re.MULTILINE)
    files = (path for folder in _folders(hydra) for path in sorted(folder.rglob("*.yaml")))
    return next((str(path) for path in files if wanted.search(path.read_text(encoding="utf-8"))), None)
