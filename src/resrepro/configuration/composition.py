"""Hydra: from words on the command line to configurations."""

import difflib
import itertools
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import GrammarParseError

from resrepro.configuration.manual import manual
from resrepro.configuration.schema import (
    INTERPOLATIONS,
    WORD,
    Config,
    data_differences,
    differences,
    flatten,
    from_mapping,
    nearest,
)
from resrepro.configuration.trust import is_launchers, refuse_code
from resrepro.configuration.words import parse, split_words, values
from resrepro.errors import ConfigError

__all__ = [
    "Composer",
    "compose",
    "expand",
    "launch",
    "launcher_config",
    "parse",
    "run_sweep",
    "split_words",
    "words_of",
]

CONFIG_MODULE = "resrepro.conf"
VERSION_BASE = "1.3"
# What the launchers need, by the extra that brings it.
EXTRAS = {
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
    "slurm": "hydra-submitit-launcher",
}
# Ours has the name of the plugin's own, and is checked against it: as it should be.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/ray' is validated against")


class UsersFolder(SearchPathPlugin):
    """Has Hydra look for configurations in the user's folder too, after the package's."""

    path: str | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folder, if there is one."""
        if self.path is not None:
            search_path.append("command-line", f"file://{Path(self.path).absolute()}")


Plugins.instance().register(UsersFolder)


class Composer:
    """Hydra, ready to compose the commands' configurations.

    Args:
        config_dir: the user's own folder of configurations, if any; searched after the package's.
        asked: the command that was given, where another's configuration is composed for it.

    Raises:
        ConfigError: a file of the user's has the name of one of the package's.
    """

    def __init__(self, config_dir: str | None = None, asked: str | None = None) -> None:
        if config_dir is not None:
            _check_names(Path(config_dir))
        self.config_dir = config_dir
        self.asked = asked
        self._own: dict[str, DictConfig] = {}
        UsersFolder.path = config_dir
        self._initialized = hydra.initialize_config_module(CONFIG_MODULE, version_base=VERSION_BASE)

    def __enter__(self) -> "Composer":
        """Gives itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves Hydra as it was."""
        self._initialized.__exit__(None, None, None)

    @property
    def loader(self) -> ConfigLoader:
        """Hydra's."""
        return GlobalHydra.instance().config_loader()

    def options(self, group: str) -> list[str]:
        """What can be chosen in a group."""
        return self.loader.get_group_options(group)

    def values(self, words: list[str], commas: bool) -> dict[str, list[str]]:
        """See `words.values`."""
        return values(words, self.loader, commas)

    def load(self, command: str, overrides: list[str]) -> DictConfig:
        """The configuration that overrides make of a command's files, Hydra's part left out.

        Raises:
            ConfigError: they make none, or one that would have Hydra run code.
        """
        config = self.load_all(command, overrides)
        with open_dict(config):
            del config["hydra"]
        return config

    def load_all(self, command: str, overrides: list[str]) -> DictConfig:
        """The same with Hydra's part, under `hydra`."""
        own = self._own_of(command)
        if not overrides:
            return own.copy()
        _require_launcher(overrides)
        try:
            config = _compose(command, overrides)
            launcher = [
                word for word in overrides if is_launchers(word.lstrip("+").partition("=")[0])
            ]
            by_words = _compose(command, launcher) if launcher else own
        except Exception as error:  # Hydra and OmegaConf raise what they come upon
            raise ConfigError(self._why_not(command, overrides, error)) from error
        refuse_code(config.hydra, by_words.hydra, own.hydra, overrides)
        return config

    def defaults(self, command: str, words: list[str]) -> dict[str, Any]:
        """Every key of a command, flattened, with the value that its files and words give."""
        container = OmegaConf.to_container(self.load(command, words), resolve=False)
        return flatten(cast(dict[str, Any], container))

    def _groups(self, command: str) -> list[str]:
        return list(self._own_of(command).hydra.runtime.choices)

    def _own_of(self, command: str) -> DictConfig:
        if command not in self._own:
            self._own[command] = _compose(command, [])
        return self._own[command]

    def _why_not(self, command: str, overrides: list[str], error: Exception) -> str:
        """Why overrides cannot be composed: a file is broken, or there is no such choice or key."""
        groups = self._groups(command)
        given = OverridesParser.create().parse_overrides(overrides)
        chosen = [one for one in given if one.key_or_group in groups]
        for one in chosen:
            group, choice = one.key_or_group, one.value()
            if choice not in (options := self.options(group)):
                return _no_such(group, "null" if choice is None else str(choice), options)
        if isinstance(error, MissingConfigException):  # a file of the user's asks for it
            group, _, name = str(error.missing_cfg_file).rpartition("/")
            return _no_such(group, name, self.options(group))
        try:
            config = _compose(command, [str(one.input_line) for one in chosen])
            container = OmegaConf.to_container(config, resolve=False)
            known = [*flatten(cast(dict[str, Any], container)), *groups]
        except Exception:  # it is among the choices then
            known = None
        return self._broken_file(error) or self._strange(command, given, known, error)

    def _strange(
        self, command: str, given: list[Override], known: list[str] | None, error: Exception
    ) -> str:
        """Which override has no key of the command's, or no value, given the keys there are."""
        cause = error.__cause__ or error
        for one in given:
            is_known = known is None or one.key_or_group in known
            if not is_known and not one.is_add():
                if is_launchers(one.key_or_group):
                    return f"{one.input_line}: the launcher chosen has no such setting"
                return self._no_key(command, one.key_or_group, known or [])
            if known is not None and is_known and one.is_add():
                return f"{one.input_line}: say it without the +"
            if isinstance(cause, GrammarParseError) and cause.full_key == one.key_or_group:
                return f"{one.input_line}: {INTERPOLATIONS}"
        return " ".join(str(cause).split()) or type(cause).__name__

    def _no_key(self, command: str, key: str, known: list[str]) -> str:
        asked = self.asked or command
        helps = [f"`resrepro {one} --help`" for one in dict.fromkeys((asked, command))]
        look = f"{' and '.join(helps)} list{'' if len(helps) > 1 else 's'} them"
        if key in self.defaults(command, []):
            return f"{key} does not go with the options chosen; {look}"
        if key.startswith("optimizer.keywords."):
            return f"{key}: the optimizer's file has no such keyword; +{key}=VALUE adds one"
        near = nearest(key, [*known, *self.defaults(asked, []), *self._groups(asked)])
        hint = f"; did you mean {near}?" if near else ""
        return f"{key} is no key of resrepro {asked}{hint} ({look})"

    def _broken_file(self, error: Exception) -> str | None:
        """Which file of the user's cannot be read, if that is what is wrong."""
        if not isinstance(error, yaml.YAMLError | UnicodeDecodeError | OSError):
            return None
        patterns = ("*/*.yaml", "*/*/*.yaml") if self.config_dir else ()  # model/, hydra/launcher/
        folder = Path(self.config_dir or "")
        for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
            try:
                content = yaml.safe_load(file.read_text(encoding="utf-8"))
            except yaml.MarkedYAMLError as broken:
                line = broken.problem_mark.line + 1 if broken.problem_mark else 1
                return f"{file}: is no YAML: {broken.problem} in line {line}"
            except (yaml.YAMLError, UnicodeDecodeError, OSError) as broken:
                return f"{file}: is no YAML: {' '.join(str(broken).split())}"
            if content is not None and not isinstance(content, dict | list):
                return f"{file}: must hold keys and values"
        return None


def _check_names(folder: Path) -> None:
    """Refuses a file that would silently stand behind the package's of the same name."""
    with as_file(files(CONFIG_MODULE)) as ours:
        for file in sorted(ours.rglob("*.yaml")):
            name = file.relative_to(ours)
            if (folder / name).is_file() and (folder / name).read_bytes() != file.read_bytes():
                raise ConfigError(
                    f"{folder / name}: resrepro has a file of that name; give yours another one"
                )


def _compose(command: str, overrides: list[str]) -> DictConfig:
    return hydra.compose(command, overrides, return_hydra_config=True)


def compose(command: str, words: list[str]) -> list[DictConfig]:
    """The configurations that words make, one for each combination of values with commas.

    None where they only ask to be shown something: that is printed.

    Raises:
        ConfigError: they do not make configurations.
    """
    args = parse(words)
    is_train = command == "train"
    if args.multirun and not is_train:
        raise ConfigError("-m is for resrepro train; commas do without it here")
    with Composer(args.config_dir) as composer:
        jobs = _jobs(composer.values(args.overrides, commas=args.multirun or not is_train))
        if not jobs:
            raise ConfigError(f"{' '.join(args.overrides)}: these words make no run")
        if args.help:
            print(manual(command, composer.load_all(command, jobs[0]), args.config_dir))
            return []
        composed = [composer.load_all(command, job) for job in jobs]
    if args.cfg is not None:
        shown = (_shown(one, args.cfg, args.package, args.resolve) for one in composed)
        print("---\n".join(shown), end="")
        return []
    for one in composed:
        with open_dict(one):
            del one["hydra"]
    return composed


def _jobs(given: dict[str, list[str]]) -> list[list[str]]:
    return [list(job) for job in itertools.product(*given.values())]


def _shown(composed: DictConfig, part: str, package: str | None, resolve: bool) -> str:
    with open_dict(composed):
        if part == "job":
            del composed["hydra"]
        elif part == "hydra":
            composed = OmegaConf.masked_copy(composed, ["hydra"])
    shown = OmegaConf.select(composed, package) if package else composed
    if not OmegaConf.is_config(shown):
        return f"{shown}\n"
    return OmegaConf.to_yaml(shown, resolve=resolve)


def expand(command: str, sweeps: list[list[str]], config_dir: str | None) -> list[Config]:
    """Every run of some sweeps, checked, before any of them starts.

    Args:
        command: that was asked for the runs; their configuration is that of `resrepro train`.
        sweeps: overrides, of which those with commas are swept over.
        config_dir: the user's own folder of configurations, if any.

    Raises:
        ConfigError: a run's configuration is wrong, or two runs would share a directory.
    """
    runs: dict[Path, Config] = {}
    with Composer(config_dir, command) as composer:
        jobs = [job for sweep in sweeps for job in _jobs(composer.values(sweep, commas=True))]
        for job in jobs:
            run = from_mapping(composer.load("train", job))
            twin = runs.setdefault(run.directory, run)
            if differ := differences(twin, run) | data_differences(twin, run):
                both = "; ".join(f"{k} {a} and {b}" for k, (a, b) in differ.items())
                raise ConfigError(
                    f"two runs would share {run.directory} ({both}); {_a_place_each(differ)}"
                )
    if not runs:
        words = " ".join(word for sweep in sweeps for word in sweep)
        raise ConfigError(f"{words or 'no runs'}: these words make no run")
    return list(runs.values())


def _a_place_each(differ: dict[str, tuple[Any, Any]]) -> str:
    """How runs that differ in some keys can be given a directory each."""
    key = "optimizer.name" if "optimizer.name" in differ else next(iter(differ))
    value = differ[key][0]
    is_no_word = isinstance(value, str) and not WORD.fullmatch(value)  # a path, say
    if is_no_word or (key.startswith("optimizer.keywords.") and None in differ[key]):
        return "train each by itself, with a tag=WORD of its own"
    word = "WORD" if isinstance(value, list) else f"{key.split('.')[-1]}${{{key}}}"
    return f"give each a place of its own, as in 'tag={word}'"


def _no_such(group: str, name: str, options: list[str]) -> str:
    """There is no such choice: what there is."""
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{group}={name}: there is no such {group}; {hint}choose one of {', '.join(options)}"


def _require_launcher(overrides: list[str]) -> None:
    """Checks that the launcher that is chosen is installed."""
    for word in overrides:
        extra = word.removeprefix("hydra/launcher=")
        if word != extra and extra in EXTRAS:
            try:
                version(EXTRAS[extra])
            except PackageNotFoundError as error:
                raise ConfigError(
                    f"{word}: needs an extra: pip install 'resrepro[{extra}]'"
                ) from error


def launcher_config(command: str, words: list[str], folder: Path) -> DictConfig:
    """Hydra's own part of a command's configuration, of which `launch` takes its launcher.

    Args:
        command: the command.
        words: its words.
        folder: for what a launcher writes.
    """
    args = parse(words)
    with Composer(args.config_dir) as composer:
        given = composer.values(args.overrides, commas=True)
        chosen = [of[0] for key, of in given.items() if is_launchers(key.lstrip("+"))]
        config = composer.load_all(command, chosen)
    with read_write(config):
        config.hydra.sweep.dir = str(folder)
    return config


def launch(
    config: DictConfig, words: list[str], task: Callable[[DictConfig], None], jobs: int
) -> None:
    """Has the launcher of a configuration run `task` in jobs, which know their `hydra.job.num`."""
    with Composer(parse(words).config_dir) as composer, _full_errors():
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(composer.loader, Callbacks()),  # which there is nowhere else
            task_function=task,
            config=config,
        )
        # A job composes the command anew, and makes the folder that this names.
        launcher.launch([["hydra.sweep.dir=."]] * jobs, initial_job_idx=0)


def run_sweep(words: list[str], job: Callable[[DictConfig], None]) -> None:
    """Runs a job for each run of a sweep of `resrepro train`, through Hydra's launcher.

    For that Hydra has no function: it wants to be the program, and to read its command line.
    """
    args = parse(words)
    with Composer(args.config_dir) as composer:
        given = composer.values(args.overrides, commas=True)
    # Each value as it was understood here, so that these are the runs that were checked.
    sweep = [
        f"{key}={','.join(v.removeprefix(f'{key}=') for v in of)}" for key, of in given.items()
    ]
    folder = [] if args.config_dir is None else [f"--config-dir={args.config_dir}"]
    with _own_argv(["resrepro train", "-m", *folder, *sweep]), _full_errors():
        hydra.main(f"pkg://{CONFIG_MODULE}", "train", version_base=VERSION_BASE)(job)()


@contextmanager
def _own_argv(arguments: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _full_errors() -> Iterator[None]:
    """Asks Hydra to raise its errors, and not to print them and exit by itself."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def words_of(text: str) -> list[str]:
    """Overrides as a study writes them: words in a row."""
    return shlex.split(text)
