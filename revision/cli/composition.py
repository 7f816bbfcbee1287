"""From a command line to a checked `Config`: Hydra composes, and every mistake becomes one sentence.

Overrides have been checked before (`overrides`); what Hydra then finds lies in a file, and `explaining` says so.
Nothing heavier than Hydra is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from revision.cli.explaining import explain, sentence
from revision.cli.loading import Loader
from revision.fields import rule, type_at
from revision.rules import check
from revision.schema import Config
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
        raise ConfigError(sentence(error)) from error
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
