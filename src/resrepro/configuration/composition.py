"""Hydra: from words on the command line to configurations."""

import argparse
import difflib
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from resrepro.configuration.schema import (
    WORD,
    Config,
    data_differences,
    differences,
    explain,
    flatten,
    from_mapping,
)
from resrepro.configuration.trust import refuse_code
from resrepro.errors import ConfigError, ResreproError

CONFIG_PACKAGE = "pkg://resrepro.conf"
VERSION_BASE = "1.3"
# What the launchers need, by the extra that brings it.
EXTRAS = {
    "joblib": "hydra-joblib-launcher",
    "ray": "hydra-ray-launcher",
    "slurm": "hydra-submitit-launcher",
}
# Ours has the name of the plugin's own, and is checked against it: as it should be.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/ray' is validated against")


def parse(words: list[str]) -> argparse.Namespace:
    """Splits a command's words into Hydra's flags and the overrides.

    Raises:
        ConfigError: there is no such flag, or not for resrepro's commands.
    """
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise ConfigError(f"{message}; --help lists what can be said")

    parser.error = refuse  # type: ignore[method-assign, assignment]
    args = parser.parse_intermixed_args(words)
    for flag in ("config_path", "config_name", "experimental_rerun"):
        if getattr(args, flag) is not None:
            raise ConfigError(
                f"--{flag.replace('_', '-')}: the commands have files of their own; add a folder "
                "of yours with --config-dir DIR"
            )
    for word in args.overrides:
        if group := re.match(r"\+*(model|data|recipe|optimizer|study)=([\[{])", word):
            advice = (
                f"-m sweeps over several: -m {group[1]}=A,B"
                if group[2] == "["
                else f"{group[1]}.KEY=VALUE changes a value"
            )
            raise ConfigError(f"{word}: {group[1]} takes one name; {advice}")
        if word.lstrip("+~").startswith("="):
            raise ConfigError(f"{word}: has no key; say key{word.lstrip('+~')}")
    return args


def require_launcher(overrides: list[str]) -> None:
    """Checks that the launcher that is chosen is installed.

    Raises:
        ConfigError: it is not; how to install it.
    """
    for word in overrides:
        extra = word.removeprefix("hydra/launcher=")
        if word != extra and extra in EXTRAS:
            try:
                version(EXTRAS[extra])
            except PackageNotFoundError as error:
                raise ConfigError(
                    f"{word}: needs an extra: pip install 'resrepro[{extra}]'"
                ) from error


def run_hydra(command: str, words: list[str], task: Callable[[DictConfig], None]) -> None:
    """Runs `task` under Hydra, once or, with -m, once for each job of the sweep."""
    args = parse(words)
    require_launcher(args.overrides)
    mode = RunMode.MULTIRUN if args.multirun else RunMode.RUN
    with full_errors(), search_path(args.config_dir) as loader:
        load(loader, command, args.overrides, mode)  # refuses what may not run
    with full_errors(), own_argv(command, words):
        hydra.main(config_path=CONFIG_PACKAGE, config_name=command, version_base=VERSION_BASE)(
            task
        )()


def launcher_config(command: str, words: list[str], folder: Path) -> DictConfig:
    """The configuration of a command with Hydra's own part, of which `launch` takes its launcher.

    Args:
        command: the command.
        words: its words.
        folder: for what a launcher writes.
    """
    args = parse(words)
    with full_errors(), search_path(args.config_dir) as loader:
        config = loader.config_loader.load_configuration(
            command, args.overrides, RunMode.MULTIRUN, validate_sweep_overrides=False
        )
    refuse_code(config.hydra)
    with read_write(config):
        config.hydra.sweep.dir = str(folder)
    return config


def launch(
    config: DictConfig, words: list[str], task: Callable[[DictConfig], None], jobs: int
) -> None:
    """Has the launcher of a configuration run `task` in jobs, which know their `hydra.job.num`."""
    with full_errors(), search_path(parse(words).config_dir) as loader:
        context = HydraContext(loader.config_loader, Callbacks())
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=config
        )
        # A job composes the command anew, and makes the folder that this names.
        launcher.launch([["hydra.sweep.dir=."]] * jobs, initial_job_idx=0)


def compose_one(command: str, words: list[str]) -> DictConfig | None:
    """The configuration the words make; None where they only asked to be shown something.

    Raises:
        ConfigError: the words do not make a configuration.
    """
    composed: list[DictConfig] = []
    if parse(words).multirun:
        hint = "; commas sweep without it" if command == "reproduce" else ""
        raise ConfigError(f"-m is for resrepro train{hint}")
    with explained(command):
        run_hydra(command, words, composed.append)
    return composed[0] if composed else None


def split_words(words: list[str], own_keys: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """A command's words: those with keys of its own, and those that go through to its runs."""

    def is_own(word: str) -> bool:
        key = word.lstrip("+~").partition("=")[0]
        return key.replace("/", ".").partition(".")[0] in own_keys

    of_runs = [word for word in parse(words).overrides if not is_own(word)]
    return [word for word in words if word not in of_runs], of_runs


def take_paths(words: list[str], key: str) -> tuple[list[Path], list[str]]:
    """The paths that words give to a key, with commas or in words of their own; and the others.

    A path is taken as it is: what Hydra's grammar reads in its characters is not meant.
    """
    values = [word.removeprefix(f"{key}=") for word in words if word.startswith(f"{key}=")]
    paths: list[str] = []
    for value in values:
        is_one = Path(value).expanduser().exists()
        paths += filter(None, [value] if is_one else value.split(","))
    return [Path(path) for path in paths], [w for w in words if not w.startswith(f"{key}=")]


def expand(command: str, sweeps: list[list[str]], config_dir: str | None) -> list[Config]:
    """Every run of some sweeps, checked, before any of them starts.

    Args:
        command: whose configuration the runs have.
        sweeps: overrides, of which those with commas are swept over.
        config_dir: the user's own folder of configurations, if any.

    Raises:
        ConfigError: a run's configuration is wrong, or two runs would share a directory.
    """
    runs: dict[Path, Config] = {}
    with explained(command), full_errors(), search_path(config_dir) as loader:
        parser = OverridesParser.create(config_loader=loader.config_loader)
        for sweep in sweeps:
            overrides = parser.parse_overrides(sweep)
            for job in BasicSweeper.split_arguments(overrides, None)[0]:
                run = from_mapping(load(loader, command, job))
                twin = runs.setdefault(run.directory, run)
                if differ := differences(twin, run) | data_differences(twin, run):
                    values = [f"{k} {a} and {b}" for k, (a, b) in differ.items()]
                    raise ConfigError(
                        f"two runs would share {run.directory} ({'; '.join(values)}); "
                        f"{_a_place_each(differ)}"
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


def load(
    loader: Hydra, command: str, overrides: list[str], mode: RunMode = RunMode.RUN
) -> DictConfig:
    """The configuration that overrides make of a command's files.

    Raises:
        ConfigError: it would have Hydra run code.
    """
    try:
        config = loader.config_loader.load_configuration(
            command, overrides, mode, validate_sweep_overrides=False
        )
    except AttributeError as error:  # OmegaConf's, of a key below one that is null
        key = re.search(r"full_key: (\S+)", str(error))
        raise ConfigError(f"{key[1] if key else command}: cannot take such a value") from error
    refuse_code(config.hydra)
    if config.hydra.mode is not None:
        raise ConfigError("hydra.mode: is not for configurations; say -m to sweep")
    with open_dict(config):
        del config["hydra"]
    return config


def defaults(loader: Hydra, command: str, words: list[str]) -> dict[str, Any]:
    """Every key of a command, flattened, with the value that its files and some words give."""
    container = OmegaConf.to_container(load(loader, command, words), resolve=False)
    return flatten(cast(dict[str, Any], container))


def words_of(text: str) -> list[str]:
    """Overrides as a study writes them: words in a row."""
    return shlex.split(text)


@contextmanager
def search_path(config_dir: str | None) -> Iterator[Hydra]:
    """Hydra, ready to compose, with the user's folder before the package's."""
    path = create_config_search_path(CONFIG_PACKAGE)
    if config_dir is not None:
        path.prepend("command-line", f"file://{Path(config_dir).absolute()}")
    hydra.version.setbase(VERSION_BASE)
    try:
        yield Hydra.create_main_hydra2("resrepro", path)
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def own_argv(command: str, words: list[str]) -> Iterator[None]:
    """Lets Hydra see a command as a program of its own."""
    before = sys.argv
    overrides = parse(words).overrides
    flags = [word for word in words if word not in overrides]
    sys.argv = [f"resrepro {command}", *flags, *overrides]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def full_errors() -> Iterator[None]:
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


@contextmanager
def explained(command: str) -> Iterator[None]:
    """Turns what Hydra and OmegaConf say of wrong words into one line.

    Hydra raises ValueError and TypeError, too, for values of a kind it does not expect.
    """
    try:
        yield
    except ResreproError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except OverrideParseException as error:
        if "=" not in error.override:
            raise ConfigError(f"{error.override}: say key=value, as in depth=56") from error
        raise ConfigError(
            f"{error.override}: cannot be read; a value with =, brackets, braces or commas of its "
            "own needs quotes within quotes, as in 'tag=\"a=b\"'"
        ) from error
    except (HydraException, ValueError, TypeError) as error:
        raise ConfigError(_explain(command, error)) from error


def _explain(command: str, error: Exception) -> str:
    text = str(error)
    if match := re.match(r"Could not override '([^']+)'", text):
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException) and "is not in struct" not in str(cause):
            return explain(cause)
        return _unknown_key(command, match[1])
    if match := re.match(r"In '[^']+': Could not find '(.+)/([^/']+)'", text) or re.match(
        r"Could not find '(.+)/([^/']+)'", text
    ):
        options = re.search(r"Available options in '[^']+':\n((?:\t.+\n?)+)", text)
        known = ", ".join(options[1].split()) if options else "none"
        return f"{match[1]}={match[2]}: there is no such {match[1]}; choose one of {known}"
    if match := re.match(r"Ambiguous value for argument '(.+)'", text):
        return f"{match[1]}: has several values; add -m to sweep over them"
    return " ".join(text.split())


def _unknown_key(command: str, key: str) -> str:
    with search_path(None) as loader:
        known = list(defaults(loader, command, []))
    if key in known:
        return f"{key} does not go with the options chosen; `resrepro {command} --help` lists them"
    if key.startswith("optimizer.keywords."):
        return f"{key}: the optimizer's file has no such keyword; +{key}=VALUE adds one"
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{key} is no key of resrepro {command}{hint} (`resrepro {command} --help` lists them)"
