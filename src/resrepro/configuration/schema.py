"""What a configuration may say, and which part of it identifies a run.

Hydra composes the files under conf/; this module gives the result types, checks every value
with a sentence that says what would be right, and tells two runs apart.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from resrepro import extension
from resrepro.errors import ConfigError


@dataclass
class Model:
    """A net's family (paper, section 3.3)."""

    name: str
    width: int = 16
    shortcut: str | None = None


@dataclass
class Data:
    """A data set, and how its pixels are prepared."""

    name: str
    split: str = "test"
    mean: str = "pixel"
    image_size: int | None = None
    dataset: str | None = None
    variant: str | None = None
    root: str | None = None
    download: bool | None = None
    cache: str | None = None
    archive: str | None = None
    url: Any = None  # one mirror, or several
    sha256: str | None = None
    resident: str = "auto"


@dataclass
class WarmUp:
    """A lower rate at the start of deep nets' runs (paper, section 4.2, on 110 layers)."""

    depth: int | None = None
    learning_rate: float = 0.01
    until_error: float = 80.0


@dataclass
class Recipe:
    """How a net is trained; everything is counted in iterations."""

    name: str
    iterations: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    drops: list[float]
    padding: int
    flip: bool
    warm_up: WarmUp = field(default_factory=WarmUp)


@dataclass
class Optimizer:
    """One of torch.optim's.

    Attributes:
        name: its class, such as AdamW.
        keywords: what it is made with beside its rate, which is the recipe's.
    """

    name: str
    keywords: dict[str, Any] = field(default_factory=dict)


def paper_optimizer(recipe: Recipe) -> Optimizer:
    """SGD with a recipe's momentum and weight decay (paper, section 4.2)."""
    keywords = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    return Optimizer("SGD", keywords)


@dataclass
class Constructed:
    """Where the weights of a constructed solution come from (paper, section 1).

    Attributes:
        depth: of the trained, shallower net.
        weights: SHA-256 of its checkpoint.
        run: its run directory.
    """

    depth: int
    weights: str
    run: str


@dataclass
class Config:
    """One run."""

    model: Model
    depth: int
    seed: int
    data: Data
    recipe: Recipe
    optimizer: Optimizer | None = None  # None: the paper's
    precision: str = "float32"
    compile: bool = False
    deterministic: bool = False
    evaluate_every: int | None = None
    device: str = "auto"
    threads: int | None = None
    cuda_graph: bool | None = None
    activation_checkpointing: bool = False
    checkpoint_seconds: float = 60.0
    logger: str | None = None
    outputs: str = "outputs"
    experiment: str = "default"
    tag: str | None = None
    constructed: Constructed | None = None
    extensions: dict[str, str] | None = None  # those it needs, by name, with their SHA-256

    @property
    def name(self) -> str:
        """The run's name, which is also its directory's: plain-56-s0, plain-56-s0-lr0.05."""
        name = f"{self.model.name}-{self.depth}-s{self.seed}"
        return f"{name}-{self.tag}" if self.tag else name

    @property
    def directory(self) -> Path:
        """Where the run's files lie."""
        return Path(self.outputs).expanduser() / self.experiment / self.name

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as written to config.yaml; keys that do not apply are left out."""
        config = asdict(self)
        for group in ("model", "data"):
            config[group] = {k: v for k, v in config[group].items() if v is not None}
        for key in ("optimizer", "logger", "constructed", "extensions"):
            if config[key] is None:
                del config[key]
        return config


# Keys that say where a run happens, how its kernels are launched and its memory is used, how it
# is watched or what it is called. All others can change its numbers, and identify it. The data's
# content is identified by its digest.
NOT_IDENTIFYING = frozenset(
    {
        "outputs",
        "experiment",
        "tag",
        "device",
        "threads",
        "checkpoint_seconds",
        "logger",
        "cuda_graph",
        "activation_checkpointing",
        "recipe.name",
        "data.root",
        "data.download",
        "data.cache",
        "data.archive",
        "data.url",
        "data.sha256",
        "data.resident",
        "constructed.run",
    }
)

# Where the data come from. Two places may hold the same data: only their digest tells.
DATA_PLACES = ("root", "archive", "url", "sha256")

# Beyond these it is a slip of the hand, and would only be noticed when the memory is full.
DEEPEST, WIDEST, MOST_THREADS = 12_002, 4096, 1024
LARGEST_BATCH, WIDEST_PADDING, WIDEST_IMAGE, LARGEST_NUMBER = 65_536, 64, 1024, 1e38
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,-]{0,99}")
# Of an optimizer: how its kernels are launched.
DEVICES_KEYWORDS = ("foreach", "fused", "capturable", "differentiable")

# What the other commands take.


@dataclass
class Place:
    """An experiment: `resrepro report`, `resrepro status`."""

    outputs: str
    experiment: str | None


@dataclass
class Plot(Place):
    """Figures, one or several."""

    figure: Any


@dataclass
class ConstructRecipe:
    """How a constructed solution is trained on."""

    iterations: int


@dataclass
class Construct:
    """A constructed solution: from which run, how deep."""

    run: str | None
    depth: int | None
    device: str
    recipe: ConstructRecipe


@dataclass
class Evaluate:
    """Saved nets, and in what arithmetic they are evaluated; None: their own."""

    run: str | None
    device: str
    precision: str | None
    compile: bool | None
    data: Data | None = None


@dataclass
class DataAlone:
    """A data set to be fetched."""

    data: Data


@dataclass
class Bench:
    """How speed is measured."""

    image_size: Any
    repeats: int
    seconds: float
    conventional: bool
    outputs: str


@dataclass
class Reproduce:
    """How a study is run; what it is made of is for `resrepro.studies.plan`."""

    jobs: int | None
    study: Any
    wait: bool = True


Schema = TypeVar("Schema")


def from_mapping(composed: DictConfig | Mapping[str, Any], is_used: bool = True) -> Config:
    """Gives a composed configuration its types and checks it.

    Args:
        composed: what Hydra composed, or config.yaml holds.
        is_used: whether the folders it names must be there; not for a run that is looked at.

    Raises:
        ConfigError: naming the key, what was wrong with it and what would be right.
    """
    config = typed(Config, composed)
    if config.optimizer == paper_optimizer(config.recipe):
        config.optimizer = None
    if is_used:
        config.extensions = extension.used_by(config.model.name, config.data.name) or None
    for complaint in complaints(config):
        raise ConfigError(complaint)
    if is_used and config.logger and find_spec("tensorboard") is None:
        raise ConfigError(
            "logger=tensorboard: TensorBoard is not installed; pip install 'resrepro[tensorboard]'"
        )
    if is_used and config.optimizer:
        from resrepro.configuration import optimizers  # imports PyTorch

        optimizers.check(config.optimizer, bool(config.cuda_graph))
    _check_data(config.data, is_used, bool(config.extensions))
    return config


def typed(schema: type[Schema], composed: DictConfig | Mapping[str, Any]) -> Schema:
    """Gives a composed configuration its types, and checks nothing else.

    Raises:
        ConfigError: naming the key, and what would be right.
    """
    try:
        return cast(Schema, _as_it_is(schema, composed))
    except TypeError:
        pass
    try:
        _check_groups(schema, composed)
        merged = OmegaConf.merge(OmegaConf.structured(schema), cast(DictConfig, composed))
        made = cast(Schema, OmegaConf.to_object(merged))
        if OmegaConf.is_config(composed) and (missing := OmegaConf.missing_keys(composed)):
            raise ConfigError(f"{min(missing)} is not given")  # merging has taken the default
        return made
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error, schema, composed)) from error
    except OverflowError as error:  # an integer where a float is wanted
        values = flatten(cast(Mapping[str, Any], composed))
        huge = [k for k, v in values.items() if isinstance(v, int) and abs(v) >= 2**63]
        raise ConfigError(f"{', '.join(huge)}: must be a smaller number") from error


def _as_it_is(kind: Any, value: Any) -> Any:
    """A value that has its type already, as in a config.yaml, which takes OmegaConf 20 ms.

    Raises:
        TypeError: it may need converting, resolving or an explanation.
    """
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        kinds = _kinds(kind)
        return kind(**{key: _as_it_is(kinds.get(key), part) for key, part in value.items()})
    parts = get_args(kind)
    if get_origin(kind) is UnionType:
        return None if value is None else _as_it_is(parts[0], value)
    if get_origin(kind) is list and isinstance(value, list):
        return [_as_it_is(parts[0], part) for part in value]
    if get_origin(kind) is dict and isinstance(value, dict):
        return {_as_it_is(parts[0], k): _as_it_is(parts[1], v) for k, v in value.items()}
    if type(value) is not kind or "${" in str(value):
        raise TypeError(f"{value!r} is no {kind}")
    return value


@cache
def _kinds(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def _check_groups(schema: Any, composed: Any, prefix: str = "") -> None:
    """Refuses one value in place of a group of them."""
    for part in fields(schema):
        group = _type_of(schema, part.name)
        if is_dataclass(group) and part.name in composed:
            key, value = prefix + part.name, composed[part.name]
            if isinstance(value, Mapping | DictConfig):
                _check_groups(group, value, f"{key}.")
            elif value is not None or NoneType not in get_args(get_type_hints(schema)[part.name]):
                keys = ", ".join(f"{key}.{one.name}" for one in fields(group)[:3])
                said = "null" if value is None else value
                raise ConfigError(f"{key}={said}: must be a group of keys: {keys}, …")


def _type_of(schema: Any, key: str) -> Any:
    """The type of a key with dots, None left aside; Any where there is none."""
    for name in key.split("."):
        hint = get_type_hints(schema).get(name, Any) if is_dataclass(schema) else Any
        schema = next((t for t in get_args(hint) if t is not NoneType), hint)
        if get_origin(hint) in (list, dict):
            schema = hint
    return schema


KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    list[float]: "a list of numbers, such as [0.5,0.75]",
}


INTERPOLATIONS = (
    "has no value here; ${KEY} takes that of another key, ${oc.env:NAME} that of a variable"
)


def _explain(error: OmegaConfBaseException, schema: Any, composed: Any) -> str:
    """One line for an OmegaConf error: the key, what was wrong with it and what would be right."""
    key = str(getattr(error, "full_key", None) or "")
    name = re.sub(r"\[\d+\]", "", key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        near = nearest(key, keys_of(schema))
        hint = f"did you mean {near}?" if near else "--help lists those there are"
        return f"{key}: there is no such key; {hint}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is not given"
    if isinstance(error, ValidationError) and (kind := KINDS.get(_type_of(schema, name))):
        if name != key:  # an element of a list
            kind = "a number"
        return f"{key}={'null' if error.value is None else error.value}: must be {kind}"
    raw = OmegaConf.to_container(composed) if OmegaConf.is_config(composed) else composed
    value = flatten(cast(dict[str, Any], raw)).get(key, "")
    return f"{key}={value}: {INTERPOLATIONS}"


def keys_of(schema: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a schema, nested ones with dots."""
    for part in fields(schema):
        below = _type_of(schema, part.name)
        if is_dataclass(below):
            yield from keys_of(below, f"{prefix}{part.name}.")
        else:
            yield prefix + part.name


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The key that was probably meant: of the same last name, its initials, or much like it."""
    group, _, last = key.rpartition(".")
    names: dict[str, str] = {}
    for one in sorted(known, key=lambda k: (k.rpartition(".")[0] != group, k.count("."), k)):
        name = one.rpartition(".")[2]
        names.setdefault(name, one)
        names.setdefault("".join(word[0] for word in name.split("_") if word), one)
        names.setdefault(one, one)
    for asked in (key, last):
        if asked in names:
            return names[asked]
    for asked in (key, last):
        if near := difflib.get_close_matches(asked, names, n=1, cutoff=0.75):
            return names[near[0]]
    return None


def data_from_mapping(composed: DictConfig) -> Data:
    """The same for a data set alone."""
    data = typed(Data, composed)
    check_data(data)
    return data


def check_data(data: Data) -> None:
    """Checks a data set that is to be used."""
    _check_data(data, is_used=True)


def _check_data(data: Data, is_used: bool, is_extended: bool = False) -> None:
    if isinstance(data.url, str):
        data.url = [data.url]
    for complaint in (
        *data_complaints(data, is_extended),
        *(place_complaints(data) if is_used else ()),
    ):
        raise ConfigError(complaint)


def complaints(config: Config) -> Iterator[str]:
    """Yields a sentence for each value that cannot be right."""
    yield from net_complaints(config.model, config.depth, bool(config.extensions))
    # A constructed solution is there before it is trained.
    yield from at_least("recipe.iterations", config.recipe.iterations, int(not config.constructed))
    yield from recipe_complaints(config.recipe)
    if config.optimizer:
        yield from optimizer_complaints(config.optimizer)
    if not 0 <= config.seed < 2**63:
        yield f"seed={config.seed}: must be a whole number from 0 to 2^63-1"
    yield from choice("precision", config.precision, ("float32", "tf32", "bfloat16"))
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+", config.device):
        yield f"device={config.device}: must be auto, cpu, cuda or cuda:N"
    if config.compile and config.activation_checkpointing:
        yield "activation_checkpointing=true: does not go with compile=true"
    if config.compile and config.cuda_graph:
        yield "cuda_graph=true: does not go with compile=true"
    if config.evaluate_every is not None:
        yield from at_least("evaluate_every", config.evaluate_every, 1)
    if config.threads is not None:
        yield from at_least("threads", config.threads, 1)
        yield from at_most("threads", config.threads, MOST_THREADS)
    if not config.checkpoint_seconds >= 0:
        yield f"checkpoint_seconds={config.checkpoint_seconds}: must be 0 or more"
    if config.logger not in (None, "tensorboard"):
        yield f"logger={config.logger}: must be null or tensorboard"
    for key, word in (("experiment", config.experiment), ("tag", config.tag)):
        if word is not None and not WORD.fullmatch(word):
            yield (
                f"{key}={word}: is part of a folder's name, so use up to 100 letters, digits and "
                ". _ - = + , and begin with a letter or digit"
            )


def net_complaints(model: Model, depth: int, is_extended: bool = False) -> Iterator[str]:
    """Yields a sentence for each value of a net that cannot be right.

    Args:
        model: its family.
        depth: its weighted layers.
        is_extended: whether its family may be an extension's that is not there now.
    """
    if depth > DEEPEST:
        yield f"depth={depth}: must be {DEEPEST} or less, ten times the paper's deepest net"
    elif depth < 8 or (depth - 2) % 6 != 0:
        near = max(8, (depth + 1) // 6 * 6 + 2)
        yield (
            f"depth={depth}: a CIFAR net has 6n+2 weighted layers (paper, section 4.2): "
            f"8, 14, 20, 26, 32, …; the nearest is {near}"
        )
    if not is_extended:
        yield from choice("model.name", model.name, extension.families())
        if extension.takes_shortcut(model.name):
            yield from choice("model.shortcut", model.shortcut, ("A", "B"))
        elif model.shortcut is not None:
            yield f"model.shortcut={model.shortcut}: a {model.name} net has no shortcuts to choose"
    yield from at_least("model.width", model.width, 1)
    yield from at_most("model.width", model.width, WIDEST)


def recipe_complaints(recipe: Recipe) -> Iterator[str]:
    """Yields a sentence for each value of a recipe that cannot be right."""
    yield from at_least("recipe.batch_size", recipe.batch_size, 2)
    yield from at_most("recipe.batch_size", recipe.batch_size, LARGEST_BATCH)
    yield from at_least("recipe.padding", recipe.padding, 0)
    yield from at_most("recipe.padding", recipe.padding, WIDEST_PADDING)
    yield from positive("recipe.learning_rate", recipe.learning_rate)
    yield from fraction("recipe.momentum", recipe.momentum)
    yield from fraction("recipe.weight_decay", recipe.weight_decay)
    drops = recipe.drops if isinstance(recipe.drops, list) else [0.0]  # an interpolation, say
    if sorted(drops) != drops or not all(0 < drop < 1 for drop in drops):
        yield (
            f"recipe.drops={recipe.drops}: must be rising fractions of the run between 0 and 1, "
            "such as [0.5,0.75]"
        )
    if recipe.warm_up.depth is not None:
        yield from positive("recipe.warm_up.learning_rate", recipe.warm_up.learning_rate)
        if not 0 < recipe.warm_up.until_error <= 100:
            yield "recipe.warm_up.until_error: must be a percentage between 0 and 100"


def optimizer_complaints(optimizer: Optimizer) -> Iterator[str]:
    """Yields a sentence for each keyword that an optimizer cannot be given here."""
    for keyword, value in optimizer.keywords.items():
        key = f"optimizer.keywords.{keyword}"
        if keyword in ("lr", "params"):
            yield f"{key}: is not for configurations; the rate is recipe.learning_rate"
        elif keyword in DEVICES_KEYWORDS:
            yield f"{key}: is not for configurations; it follows from device and cuda_graph"
        elif not all(map(_is_plain, value if isinstance(value, list) else [value])):
            yield f"{key}={value}: must be a number, true, false, null or a list of such"


def _is_plain(value: object) -> bool:
    is_number = isinstance(value, int | float) and abs(value) <= LARGEST_NUMBER
    return value is None or is_number


def data_complaints(data: Data, is_extended: bool = False) -> Iterator[str]:
    """Yields a sentence for each value of a data set that cannot be right.

    Args:
        data: the data set.
        is_extended: whether it may be an extension's that is not there now.
    """
    if not is_extended:
        yield from choice("data.name", data.name, extension.datasets())
    yield from choice("data.split", data.split, ("test", "validation"))
    yield from choice("data.mean", data.mean, ("pixel", "channel"))
    yield from choice("data.resident", data.resident, ("auto", "device", "host"))
    if data.image_size is not None:
        yield from at_least("data.image_size", data.image_size, 8)
        yield from at_most("data.image_size", data.image_size, WIDEST_IMAGE)


def place_complaints(data: Data) -> Iterator[str]:
    """Yields a sentence for a place that a data set cannot come from."""
    if data.name == "image_folder":
        if data.root is None:
            yield (
                "data.root is not given: name the folder that holds train/<class>/ and "
                "test/<class>/, as in data=image_folder data.root=DIR"
            )
        elif not Path(data.root).expanduser().is_dir():
            hint = "; -m sweeps over several" if "," in data.root else ""
            yield f"data.root={data.root}: there is no such folder{hint}"


def choice(key: str, value: object, options: tuple[str, ...]) -> Iterator[str]:
    """Complains of a value that is none of the options."""
    if value not in options:
        yield f"{key}={value}: must be {', '.join(options[:-1])} or {options[-1]}"


def at_least(key: str, value: int, least: int) -> Iterator[str]:
    """Complains of a whole number that is too small."""
    if value < least:
        yield f"{key}={value}: must be {least} or more"


def at_most(key: str, value: int, most: int) -> Iterator[str]:
    """Complains of a whole number that no machine could deal with."""
    if value > most:
        yield f"{key}={value}: must be {most} or less"


def positive(key: str, value: float) -> Iterator[str]:
    """Complains of what is not a positive number, or more than float32 holds."""
    if not 0 < value <= LARGEST_NUMBER:
        yield f"{key}={value}: must be a positive number, {LARGEST_NUMBER:g} at most"


def fraction(key: str, value: float) -> Iterator[str]:
    """Complains of what is not in [0, 1)."""
    if not 0 <= value < 1:
        yield f"{key}={value}: must be at least 0 and less than 1"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def identity(config: Config) -> dict[str, Any]:
    """Every key that can change the run's numbers, flattened."""
    return {k: v for k, v in flatten(config.to_dict()).items() if k not in NOT_IDENTIFYING}


def config_hash(config: Config) -> str:
    """Sixteen hexadecimal digits that stand for the run's identity."""
    canonical = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The identifying keys in which two configurations differ, with the value in each."""
    if one.optimizer != other.optimizer:
        one, other = _spelled_out(one), _spelled_out(other)
    return _differing(identity(one), identity(other))


def _spelled_out(config: Config) -> Config:
    """With the paper's optimizer written out, which its identity leaves out."""
    return replace(config, optimizer=config.optimizer or paper_optimizer(config.recipe))


def data_differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The keys that say where the data come from in which two configurations differ."""
    places = ({f"data.{k}": getattr(c.data, k) for k in DATA_PLACES} for c in (one, other))
    return _differing(*places)


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted(a.keys() | b.keys())
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}
