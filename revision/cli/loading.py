"""Hydra's loader of configurations, for a command line that asks it for the same thing several times."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig


class Loader(ConfigLoaderImpl):
    """Composes a command line once: whether it is a sweep, its check and its run all ask, a quarter second each."""

    def __init__(self, search_path: ConfigSearchPath) -> None:
        super().__init__(search_path)
        self._last: tuple[tuple[Any, ...], DictConfig] | None = None
        self._repositories: dict[tuple[str | None, ...], IConfigRepository] = {}

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """A tree of the caller's own, copied where the last call was for the same one."""
        if validate_sweep_overrides:
            parsed = OverridesParser.create().parse_overrides(overrides)
            self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
        key = (config_name, run_mode, *overrides)
        if self._last is None or self._last[0] != key:
            composed = super().load_configuration(config_name, overrides, run_mode, from_shell, False)
            self._last = key, composed
        return copy.deepcopy(self._last[1])

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Files of a group, or groups in it, where the overrides may hold further folders to look into."""
        key = (config_name, *(overrides or ()))
        if key not in self._repositories:
            _, self._repositories[key] = self._parse_overrides_and_create_caching_repo(config_name, overrides or [])
        options: list[str] = self._repositories[key].get_group_options(group_name, results_filter)
        return options
