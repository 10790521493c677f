"""Configurations are data: of Hydra's own part they can choose a launcher, and nothing else.

Hydra imports, calls, writes to and sets in the environment what its part of a configuration
names: log handlers, callbacks, search paths, directories, variables. So nothing there may differ
from what the command's own files make of it, but the launcher that the words on the command line
choose and what is set for it. What a launcher does with its settings is its own matter: a
scheduler's may be the lines of a script.
"""

from collections.abc import Iterator
from typing import Any, cast

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resrepro.configuration.schema import flatten
from resrepro.errors import ConfigError

# How many runs at a time Hydra's own sweeper hands to the launcher. Other sweepers make up
# overrides that nobody has checked, and want a number from each run, which ours do not give.
BATCH = "sweeper.max_batch_size"
# What Hydra writes there itself while it composes, and does not act on.
TOLD = ("overrides", "runtime.choices", "runtime.config_sources", "job.override_dirname")
ADVICE = (
    "of Hydra's own part only the launcher can be chosen: hydra/launcher=NAME, "
    "hydra.launcher.KEY=VALUE"
)


def refuse_word(key: str) -> None:
    """Refuses a word's key that is Hydra's own and neither a launcher nor a setting of one.

    Raises:
        ConfigError: naming the key.
    """
    if key.replace("/", ".").partition(".")[0] == "hydra" and not is_launchers(key):
        raise ConfigError(f"{key}: {ADVICE}")


def is_launchers(key: str) -> bool:
    """Whether a word's key is one of those of Hydra's own part that may be said."""
    return key in ("hydra/launcher", f"hydra.{BATCH}") or key.startswith("hydra.launcher.")


def refuse_code(
    hydra: DictConfig, by_words: DictConfig, own: DictConfig, overrides: list[str]
) -> None:
    """Refuses a configuration by which Hydra would do more than compose and launch.

    Args:
        hydra: Hydra's own part of a composed configuration.
        by_words: the same, made by the words alone that choose the launcher.
        own: the same, made by the command's own files.
        overrides: what the configuration was composed of.

    Raises:
        ConfigError: naming the key.
    """
    for key in _differing(hydra, by_words):  # a file has changed what it was not asked for
        raise ConfigError(f"hydra.{key}: {ADVICE}")
    for key in _differing(by_words, own):
        if key != BATCH and not key.startswith("launcher."):
            raise ConfigError(f"hydra.{key}: {ADVICE}")
    told = [*hydra.overrides.hydra, *hydra.overrides.task]
    if sorted(told) != sorted(overrides):  # a sweep would take more of them for said
        raise ConfigError(f"hydra.overrides: {ADVICE}")
    if _differing(by_words, own):
        _check_settings(hydra)


def _differing(one: DictConfig, other: DictConfig) -> list[str]:
    a, b = _flat(one), _flat(other)
    return sorted(key for key in a.keys() | b.keys() if a.get(key, ...) != b.get(key, ...))


def _flat(hydra: DictConfig) -> dict[str, Any]:
    container = cast(dict[str, Any], OmegaConf.to_container(hydra, resolve=False))
    return {k: v for k, v in flatten(container).items() if not k.startswith(TOLD)}


def _check_settings(hydra: DictConfig) -> None:
    """Checks that the launcher is an installed one, and its settings are plain values."""
    batch = hydra.sweeper.max_batch_size
    if batch is not None and (type(batch) is not int or batch < 1):
        raise ConfigError(f"hydra.{BATCH}={batch}: must be 1 or more")
    launchers = {
        f"{one.__module__}.{one.__name__}" for one in Plugins.instance().discover(Launcher)
    }
    for key, value in _nodes(hydra, "launcher"):
        if key == "launcher._target_":
            if value not in launchers:
                raise ConfigError(f"hydra.{key}={value}: is no installed launcher")
        elif key.rpartition(".")[2].startswith("_"):  # which `instantiate` would act on
            raise ConfigError(f"hydra.{key}={value}: a launcher's settings are plain values")


def _nodes(parent: DictConfig | ListConfig, key: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below one, with its value."""
    path = f"{path}.{key}" if path else str(key)
    try:
        value = parent[key]
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.{path}: must be written out") from error
    yield path, value
    if isinstance(value, DictConfig | ListConfig):
        if OmegaConf.is_interpolation(parent, key):
            raise ConfigError(f"hydra.{path}: must be written out, not taken from another key")
        for below in value if isinstance(value, DictConfig) else range(len(value)):
            yield from _nodes(value, below, path)
