"""Configurations are data: what would have Hydra call something a file names is refused.

Hydra instantiates launchers, sweepers and callbacks from their `_target_`, and the logging
module calls what a handler's `class` or `()` names.
"""

import importlib
from collections.abc import Iterator
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resrepro.errors import ConfigError

PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
LOG_HANDLERS = ("logging.StreamHandler", "logging.FileHandler")


def refuse_code(hydra: DictConfig) -> None:
    """Refuses what is more than a choice among the installed launchers and sweepers.

    Args:
        hydra: Hydra's own part of a composed configuration.

    Raises:
        ConfigError: naming the key by which code would run.
    """
    if hydra.get("callbacks"):
        raise ConfigError(f"hydra.callbacks.{next(iter(hydra.callbacks))}: {REFUSED}")
    for part, kind in (("launcher", Launcher), ("sweeper", Sweeper)):
        for key, value in _nodes(hydra, part):
            is_plugin = key == f"{part}._target_" and _is_plugin(value, kind)
            if key.endswith("._target_") and not is_plugin:
                raise ConfigError(f"hydra.{key}={value}: {REFUSED}")
    for part in ("job_logging", "hydra_logging"):
        for key, value in _nodes(hydra, part):
            if key.endswith(".()") or (key.endswith(".class") and value not in LOG_HANDLERS):
                raise ConfigError(f"hydra.{key}={value}: {REFUSED}")


REFUSED = "would run code; resrepro's configurations may only choose installed Hydra plugins"


def _is_plugin(target: Any, kind: type) -> bool:
    """Whether a name is that of a launcher or sweeper, not of something its module imports."""
    if not isinstance(target, str) or not target.startswith(PLUGINS):
        return False
    module, _, name = target.rpartition(".")
    try:
        plugin = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(plugin, type) and issubclass(plugin, kind)


def _nodes(parent: DictConfig | ListConfig, key: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below one, with its value; None for one that only a running job knows."""
    path = f"{path}.{key}" if path else str(key)
    try:
        value = parent[key]
    except OmegaConfBaseException:
        value = None
    yield path, value
    if isinstance(value, DictConfig | ListConfig):
        if OmegaConf.is_interpolation(parent, key):
            raise ConfigError(f"hydra.{path}: must be written out, not taken from another key")
        for below in value if isinstance(value, DictConfig) else range(len(value)):
            yield from _nodes(value, below, path)
