"""A user's own code: families of blocks and data sets, from files that the user names.

Configurations and run directories are data and run nothing. Code comes in by this way alone: a
file (or an installed module) that the user names on the command line with --extension, or in
RESREPRO_EXTENSIONS. It registers what it brings by the decorators `family` and `dataset`. The
paper's own families register by the same means.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from resrepro.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])
VARIABLE = "RESREPRO_EXTENSIONS"  # several are joined as in PATH
WORD = re.compile(r"[a-z][a-z0-9_]*")
OWN_FAMILIES = ("plain", "residual")
OWN_DATASETS = ("cifar10", "cifar100", "digits", "image_folder", "torchvision")


@dataclass(frozen=True)
class Registered:
    """A family's block or a data set's function, and the extension that it came from.

    Attributes:
        make: the block or the function.
        extension: the extension's name; None for resrepro's own.
    """

    make: Callable[..., Any]
    extension: str | None


@dataclass
class _Registry:
    families: dict[str, Registered]
    datasets: dict[str, Registered]
    digests: dict[str, str]  # of the extensions that are loaded, by name
    named: dict[str, str]  # what the user called them, by name
    loading: str | None = None


_registry = _Registry({}, {}, {}, {})


def family(name: str) -> Callable[[T], T]:
    """Registers a block as a family: `model=NAME` is a net of any depth 6n+2 made of it.

    The block is called as Block(channels, filters, stride) and gives a module from
    (N, channels, H, W) to (N, filters, H/stride, W/stride). With a parameter `shortcut` it takes
    `model.shortcut=A|B` too. What else it may have:

    - `initialise(generator)`: sets weights that are not to begin as the paper's do. A function
      of the torch.Generator, which is one of the run's seed.
    - `make_identity()`: makes it pass on its input, for the constructed solution.
    - `responses()`: the modules whose outputs are the layers' responses, for figure 7.
    - `last(filters)`, a static method: makes what follows the net's last block.

    Raises:
        ConfigError: there is such a family already, or the name is no lower-case word.
    """
    return _registering(name, "family", _registry.families, OWN_FAMILIES)


def dataset(name: str) -> Callable[[T], T]:
    """Registers a data set: a function from the `data` configuration to a `resrepro.Dataset`.

    Raises:
        ConfigError: there is such a data set already, or the name is no lower-case word.
    """
    return _registering(name, "data set", _registry.datasets, OWN_DATASETS)


def _registering(
    name: str, kind: str, there_are: dict[str, Registered], own: tuple[str, ...]
) -> Callable[[T], T]:
    def register(make: T) -> T:
        is_own = make.__module__.startswith("resrepro.")  # perhaps imported by an extension
        extension = None if is_own else _registry.loading
        if not (is_own or extension):
            raise ConfigError(
                f"{kind} {name}: a run must tell what file its code is from; name that file "
                "with --extension FILE.py, or from Python with resrepro.use(FILE)"
            )
        if not WORD.fullmatch(name):
            raise ConfigError(f"a {kind} cannot be called {name!r}: use a lower-case word")
        other = there_are.get(name)
        if (extension and name in own) or (other and other.extension != extension):
            whose = (other and other.extension) or "resrepro"
            raise ConfigError(f"there is a {kind} {name} already, {whose}'s; choose another name")
        there_are[name] = Registered(make, extension)
        return make

    return register


def use(*files: str | Path) -> None:
    """Loads extensions, as --extension does on the command line.

    Raises:
        ConfigError: one cannot be found, fails, or registers nothing.
    """
    load_extensions(str(file) for file in files)


def load_extensions(words: Iterable[str]) -> None:
    """Runs the files or modules that the user named; what is loaded already is not run again.

    Raises:
        ConfigError: one cannot be found, fails, or registers nothing.
    """
    for word in words:
        module_name, source = _find(word)
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        name = source.name
        if _registry.digests.get(name) == digest:
            continue
        if name in _registry.digests:
            raise ConfigError(
                f"--extension {word}: another {name}, or an older one, is loaded already"
            )
        _registry.loading = name
        try:
            _run(module_name, source)
        except ConfigError as error:
            _forget(name)
            raise ConfigError(f"--extension {word}: {error}") from error
        except Exception as error:  # whatever the user's code raises
            _forget(name)
            raise ConfigError(
                f"--extension {word}: {type(error).__name__}{_line_of(error, source)}: "
                f"{' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)"
            ) from error
        finally:
            _registry.loading = None
        if not any(one.extension == name for one in _all()):
            raise ConfigError(
                f'--extension {word}: it registers nothing; put @resrepro.family("name") on a '
                'block or @resrepro.dataset("name") on a function'
            )
        _registry.digests[name], _registry.named[name] = digest, str(source)
        _offer_to_hydra(name)


def _all() -> list[Registered]:
    return [*_registry.families.values(), *_registry.datasets.values()]


def _forget(extension: str) -> None:
    """Takes back what a file registered before it failed."""
    for there_are in (_registry.families, _registry.datasets):
        for name in [name for name, one in there_are.items() if one.extension == extension]:
            del there_are[name]


def _find(word: str) -> tuple[str, Path]:
    """The module's name and source file that a word stands for."""
    path = Path(word).expanduser()
    if path.suffix == ".py" or "/" in word:
        if not path.is_file():
            raise ConfigError(f"--extension {word}: there is no such file")
        return f"resrepro_extension_{path.stem}", path.absolute()
    try:
        spec = importlib.util.find_spec(word)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(f"--extension {word}: there is no such module; a file's name ends in .py")
    return word, Path(spec.origin)


def _run(module_name: str, source: Path) -> ModuleType:
    if not module_name.startswith("resrepro_extension_"):
        return importlib.import_module(module_name)
    spec = importlib.util.spec_from_file_location(module_name, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def _line_of(error: Exception, source: Path) -> str:
    """Where in the extension it happened, as far as the traceback tells."""
    traceback, line = error.__traceback__, getattr(error, "lineno", None)
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(source):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f" in line {line}" if line else ""


def _offer_to_hydra(extension: str) -> None:
    """Makes model=NAME and data=NAME choices of the command line."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for name, registered in _registry.families.items():
        if registered.extension == extension:
            node: dict[str, Any] = {"name": name, "width": 16}
            if takes_shortcut(name):
                node["shortcut"] = "A"
            store.store(group="model", name=name, node=node, package="model")
    for name, registered in _registry.datasets.items():
        if registered.extension == extension:
            node = {
                "name": name,
                "split": "test",
                "mean": "pixel",
                "image_size": None,
                "root": None,
            }
            store.store(group="data", name=name, node=node, package="data")


def families() -> tuple[str, ...]:
    """The names that `model=` takes."""
    return (*OWN_FAMILIES, *(name for name in _registry.families if name not in OWN_FAMILIES))


def datasets() -> tuple[str, ...]:
    """The names that `data=` takes."""
    return (*OWN_DATASETS, *_registry.datasets)


def takes_shortcut(name: str) -> bool:
    """Whether a family has shortcuts of option A and B to choose from."""
    registered = _registry.families.get(name)
    if registered is None:  # ours, where no net has been built yet
        return name == "residual"
    return "shortcut" in inspect.signature(registered.make).parameters


def block_of(name: str) -> Any:
    """A family's block.

    Raises:
        ConfigError: there is no such family: its extension was not given.
    """
    if name not in _registry.families:
        raise ConfigError(f"there is no model {name} here: {HOW}")
    return _registry.families[name].make


def dataset_of(name: str) -> Callable[..., Any] | None:
    """The function that makes an extension's data set; None where there is none of that name."""
    registered = _registry.datasets.get(name)
    return registered.make if registered else None


def used_by(model: str, data: str) -> dict[str, str]:
    """The extensions that a net of a family on a data set needs, with their SHA-256."""
    both = (_registry.families.get(model), _registry.datasets.get(data))
    names = sorted({found.extension for found in both if found and found.extension})
    return {name: _registry.digests[name] for name in names}


def require(needed: dict[str, str] | None) -> None:
    """Checks that the extensions that a run was trained with are there, and the same.

    Raises:
        ConfigError: naming the extension, and how to give it.
    """
    for name, digest in (needed or {}).items():
        here = _registry.digests.get(name)
        if here is None:
            raise ConfigError(f"the run needs the extension {name}: {HOW}")
        if here != digest:
            raise ConfigError(
                f"the run was trained with another {name} than is given now "
                f"(SHA-256 {digest[:12]}…, now {here[:12]}…)"
            )


HOW = "give its file with --extension FILE.py"


def take_extensions(words: list[str]) -> tuple[list[str], list[str]]:
    """The extensions that a command's words and RESREPRO_EXTENSIONS name, and the other words.

    Raises:
        ConfigError: --extension stands last, without a file.
    """
    named = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--extension":
            file = next(rest, None)
            if file is None:
                raise ConfigError("--extension: name a file, as in --extension gated.py")
            named.append(file)
        elif word.startswith("--extension="):
            named.append(word.partition("=")[2])
        else:
            others.append(word)
    return named, others


def loaded() -> list[str]:
    """The files of the extensions there are, for processes that are to load them too."""
    return list(_registry.named.values())
