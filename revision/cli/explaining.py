"""What Hydra and OmegaConf find, told in one sentence: where, field, value, rule, nearest name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.hydra import Hydra
from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from revision.fields import fields_of, names_of, nearest, rule, type_at


def explain(hydra: Hydra, error: Exception) -> str:
    """One sentence for what Hydra found while composing: where, field, value, rule, nearest name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        where = _file_that_asks_for(hydra, group, option)
        return f"{where}: {no_option(group, option, list(error.options or []))}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: not valid YAML ({error.problem})."
    file = re.match(r"In '?([^':]+)'?: ", str(error))
    override = re.match(r"(?:Error merging override|Could not override) '?([^\s']+)", str(error))
    where = _file(hydra, file[1]) if file else f"override '{override[1]}'" if override else "the composed configuration"
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OmegaConfBaseException):
            return f"{where}: {sentence(cause)}"
    unknown = re.search(r"Could not override '([^']+)'\. No match", str(error))
    if unknown:
        return f"{where}: no group is named '{unknown[1]}'{nearest(unknown[1], hydra.list_all_config_groups())}."
    return " ".join(str(error).split())


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
    wanted = re.compile(rf"^\s*-.*\b{re.escape(group)}\s*:\s*['\"]?{re.escape(option)}\b", re.MULTILINE)
    files = (path for folder in _folders(hydra) for path in sorted(folder.rglob("*.yaml")))
    return next((str(path) for path in files if wanted.search(path.read_text(encoding="utf-8"))), "a defaults list")
