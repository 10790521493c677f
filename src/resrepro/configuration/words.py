"""What a command's words say: flags, paths, and values with commas, before Hydra composes them."""

import argparse
import itertools
import math
import os
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import OverrideParseException

from resrepro.configuration.trust import refuse_word
from resrepro.errors import ConfigError

PATHS = frozenset({"outputs", "run", "data.root", "data.archive", "data.cache"})
SEVERAL = ("run",)  # which a shell's {a,b} makes several words of
FLAGS = (
    "--help, -m, --config-dir DIR, --cfg job, --extension FILE.py, for reproduce --dry-run, for "
    "status --watch"
)
MOST_RUNS = 10_000  # of a sweep; composing one takes a twentieth of a second


def parse(words: list[str]) -> argparse.Namespace:
    """Splits a command's words into flags and overrides.

    Raises:
        ConfigError: there is no such flag, or it lacks its value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    for flag in (("-h", "--help"), ("-m", "--multirun"), ("--resolve",)):
        parser.add_argument(*flag, action="store_true")
    for flag in (("-cd", "--config-dir"), ("-c", "--cfg"), ("-p", "--package")):
        parser.add_argument(*flag, nargs="?", const="")

    def refuse(message: str) -> None:
        raise ConfigError(f"{message}; there are {FLAGS}")

    parser.error = refuse  # type: ignore[method-assign, assignment]
    args, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise ConfigError(f"{unknown[0]}: there is no such flag; there are {FLAGS}")
    if args.config_dir is not None:
        args.config_dir = os.path.expanduser(args.config_dir)  # noqa: PTH111
        if not args.config_dir or not Path(args.config_dir).is_dir():
            raise ConfigError(f"--config-dir {args.config_dir}: there is no such folder")
    if args.cfg not in (None, "job", "hydra", "all"):
        raise ConfigError(f"--cfg {args.cfg}: must be job, hydra or all")
    if args.package == "":
        raise ConfigError("--package: name a key, as in --package recipe")
    return args


def split_words(words: list[str], own_keys: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """A command's words: those with keys of its own, and those that go through to its runs."""

    def is_own(word: str) -> bool:
        key = word.lstrip("+~").partition("=")[0]
        return key.replace("/", ".").partition(".")[0] in own_keys

    of_runs = [word for word in parse(words).overrides if not is_own(word)]
    return [word for word in words if word not in of_runs], of_runs


def values(words: list[str], loader: ConfigLoader, commas: bool) -> dict[str, list[str]]:
    """The values that overrides give to each key, as Hydra writes them; the last word counts.

    Args:
        words: overrides.
        loader: Hydra's, which knows the groups.
        commas: whether several values are taken.

    Raises:
        ConfigError: one cannot be meant so.
    """
    parser = OverridesParser.create(config_loader=loader)
    groups = loader.list_groups("")
    given: dict[str, list[str]] = {}
    for word in words:
        override = _parsed(parser, _path_as_it_is(word, commas), commas)
        _refuse(word, override, groups, commas)
        key = override.get_key_element()
        if override.is_sweep_override():
            several = list(itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1))
        else:
            several = [override.get_value_element_as_str()]
        assigned = [f"{key}={value}" for value in several]
        given[key] = given.get(key, []) + assigned if key in SEVERAL else assigned
    count = math.prod(map(len, given.values()))
    if count > MOST_RUNS:
        raise ConfigError(f"{' '.join(words)}: these are more than {MOST_RUNS:,} runs")
    return given


def _path_as_it_is(word: str, commas: bool) -> str:
    """Quotes a path, so that Hydra's grammar does not read what is in its characters.

    Commas part several, unless there is a path of that name.
    """
    key, _, value = word.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    if key.lstrip("+") not in PATHS or is_quoted or "${" in value or value == "null":
        return word
    parts = value.split(",") if commas and not _exists(value) else [value]
    paths = [os.path.expanduser(part) for part in parts if part.strip()]  # noqa: PTH111
    if not paths:
        raise ConfigError(f"{word}: is empty; name a path, as in {key}=DIR")
    return f"{key}={','.join(map(_quoted, paths))}"


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # its name is too long, there is no such home
        return False


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _parsed(parser: OverridesParser, word: str, commas: bool) -> Override:
    """A word by Hydra's grammar; a value that it cannot read is a text as it stands."""
    key, equals, value = word.partition("=")
    if not key.strip("+~") or not (equals or key.startswith("~")):
        raise ConfigError(f"{word}: say key=value, as in depth=56")
    as_it_stands = map(_quoted, value.split(",") if commas else [value])
    for candidate in (word, f"{key}={','.join(as_it_stands)}"):
        try:
            return parser.parse_overrides([candidate])[0]
        except (OverrideParseException, RecursionError):
            continue
    raise ConfigError(f"{word}: {key} is no key; say key=value, as in depth=56")


def _refuse(word: str, override: Override, groups: list[str], commas: bool) -> None:
    key, value = override.key_or_group, override.value()
    if override.is_delete() and not key.startswith("optimizer.keywords"):
        raise ConfigError(f"{word}: a key cannot be taken away; say {key}=VALUE")
    if override.package is not None:
        raise ConfigError(f"{word}: say {key}=NAME")
    refuse_word(key)
    if key in groups and isinstance(value, list | dict):
        several = f"{key}=A,B" if commas else f"-m {key}=A,B"
        advice = f"{key}.KEY=VALUE changes a value"
        if isinstance(value, list):
            advice = f"{several} takes several, a run each"
        raise ConfigError(f"{word}: {key} takes one name; {advice}")
    if not override.is_sweep_override():
        return
    if override.is_interval_sweep():
        raise ConfigError(f"{word}: an interval has no values to try; list them: {key}=A,B")
    if key.partition(".")[0].partition("/")[0] == "hydra":
        raise ConfigError(f"{word}: takes one value; a sweep has one launcher")
    if not commas:
        raise ConfigError(f"{word}: has several values; add -m to sweep over them")
