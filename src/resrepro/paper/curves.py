"""The runs of an experiment as the paper shows them: nets, each with a run for every seed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resrepro.configuration.schema import Config, Optimizer, differences
from resrepro.errors import ConfigError, ResreproError
from resrepro.runs.run_directory import Row, RunDirectory, find_experiments, find_runs

PAPER_WIDTH = 16
FAMILY_ORDER = ("plain", "residual")
FOLDERS = {"cifar10-jpeg": "CIFAR-10 (JPEG)"}  # what the folders of docs/results hold
# In these the runs of a figure may differ. Nets trained on from a constructed solution begin with
# the weights of their own seed's net.
FREE = (
    "model.name",
    "model.shortcut",
    "depth",
    "seed",
    "evaluate_every",
    "constructed.weights",
)


@dataclass(frozen=True)
class Run:
    """What is known of one run.

    Attributes:
        directory: where it lies.
        config: its configuration.
        summary: summary.json.
        rows: metrics.csv.
        responses: the deviation of each 3x3 layer's responses, where it has been measured.
    """

    directory: RunDirectory
    config: Config
    summary: dict[str, Any]
    rows: list[Row]
    responses: list[float] | None

    @property
    def complete(self) -> bool:
        """Whether it was trained to its end."""
        return bool(self.summary["status"] == "complete")

    @property
    def origin(self) -> int | None:
        """The depth of the net it was constructed from; None for one trained from scratch."""
        return self.config.constructed.depth if self.config.constructed else None

    @property
    def final_train_error(self) -> float:
        """Percent, over the last training batches."""
        return self.rows[-1].train_error

    @property
    def final_test_error(self) -> float:
        """Percent, of the last iteration."""
        return self.rows[-1].test_error

    @property
    def best_test_error(self) -> float:
        """Percent, the lowest of all rows: it flatters."""
        return min(row.test_error for row in self.rows)

    @property
    def clean_train_error(self) -> float:
        """Percent, of the finished net on the training images without augmentation."""
        return float(self.summary["clean_train_error"])

    @property
    def mean_log_response(self) -> float | None:
        """The mean over layers of the logarithm of the responses' deviation."""
        return float(np.log(self.responses).mean()) if self.responses else None

    def images(self, quantity: str) -> int:
        """How many images an evaluated error was measured on."""
        split = "train_images" if quantity == "clean_train_error" else "test_images"
        return int(self.summary[split])


def net_name(model: str, depth: int) -> str:
    """As the paper writes it: plain-20, ResNet-20; another family by its own name."""
    return f"{'ResNet' if model == 'residual' else model}-{depth}"


def family_title(model: str) -> str:
    """A family's nets: plain nets, residual nets."""
    return f"{model} nets"


@dataclass(frozen=True)
class Net:
    """A net's runs, which differ only in their seeds.

    Attributes:
        model: the family's name: plain, residual, …
        depth: weighted layers.
        runs: those that have been evaluated at least once.
    """

    model: str
    depth: int
    runs: list[Run]

    @property
    def name(self) -> str:
        """As the paper writes it: plain-20, ResNet-20; another family by its own name."""
        return net_name(self.model, self.depth)

    @property
    def complete(self) -> list[Run]:
        """The runs that were trained to their end: only these count in tables and verdicts."""
        return [run for run in self.runs if run.complete]

    @property
    def running(self) -> list[Run]:
        """The runs that were not."""
        return [run for run in self.runs if not run.complete]

    def iterations(self) -> np.ndarray:
        """The iterations (K,) at which every complete seed has been evaluated."""
        each = [{row.iteration for row in run.rows} for run in self.complete]
        return np.array(sorted(set.intersection(*each))) if each else np.array([])

    def curve(self, column: str) -> np.ndarray:
        """A column of metrics.csv at `iterations()`, (complete seeds, K)."""
        at = set(self.iterations().tolist())
        return np.array(
            [
                [getattr(row, column) for row in run.rows if row.iteration in at]
                for run in self.complete
            ]
        )

    def last(self, column: str) -> float:
        """A column's last value: the mean of complete seeds, else that of the longest run."""
        if self.complete:
            return float(self.curve(column)[:, -1].mean())
        return float(getattr(self._longest.rows[-1], column))

    @property
    def done(self) -> int:
        """The iteration up to which the net is shown."""
        return int(self.iterations()[-1]) if self.complete else self._longest.rows[-1].iteration

    @property
    def _longest(self) -> Run:
        return max(self.runs, key=lambda run: run.rows[-1].iteration)


@dataclass(frozen=True)
class Group:
    """The nets of an experiment that may stand side by side: one tag, one recipe, one data set.

    Attributes:
        experiment: its name.
        tag: of all its runs, or None.
        nets: those trained from scratch, plain ones first, then residual ones, then by depth.
        constructed: the constructed solutions, complete and not trained on.
        missing: what could not be shown in full, as texts.
    """

    experiment: str
    tag: str | None
    nets: list[Net]
    constructed: list[Run]
    missing: list[str]

    @property
    def title(self) -> str:
        """The experiment, with its tag."""
        return f"{self.experiment}, {self.tag}" if self.tag else self.experiment

    @property
    def config(self) -> Config:
        """A configuration that stands for all, but for model, depth and seed."""
        return self.nets[0].runs[0].config

    @property
    def classes(self) -> int:
        """Of the data set."""
        return int(self.nets[0].runs[0].summary["classes"])

    @property
    def families(self) -> list[str]:
        """The families there are nets of: plain, residual, then others."""
        return list(dict.fromkeys(net.model for net in self.nets))

    @property
    def unmeasured(self) -> list[Run]:
        """The complete runs whose responses have not been measured."""
        return [run for net in self.nets for run in net.complete if run.responses is None]

    def caption(self, nets: list[Net] | None = None, finals: bool = True) -> str:
        """Data set, recipe and how it differs from the paper's, and seeds.

        Args:
            nets: that are shown; None for all.
            finals: whether final errors are shown, and are to be called so.
        """
        counts = sorted({len(net.complete) for net in nets or self.nets})
        seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        texts = [data_text(self.config), recipe_text(self.config), *self._other_nets()]
        seed = "seed" if counts[-1] == 1 else "seeds"
        texts.append(f"n = {seeds} {seed} a net" if counts[-1] else "no run is complete yet")
        return "; ".join([*texts, *(["final errors"] if finals else [])])

    def _other_nets(self) -> list[str]:
        """How the nets differ from the paper's."""
        width = self.config.model.width
        options = {net.runs[0].config.model.shortcut for net in self.nets}
        texts = [f"nets of width {width} for 16"] if width != PAPER_WIDTH else []
        return texts + (["shortcuts of option B for A"] if "B" in options else [])

    @property
    def comparable(self) -> bool:
        """Whether the errors may be set against the paper's: its images, its split, its width."""
        data = self.config.data
        is_whole = data.image_size is None and data.split == "test"
        return data.name == "cifar10" and is_whole and self.config.model.width == PAPER_WIDTH

    def select(self, model: str, depths: Iterable[int] | None = None) -> list[Net]:
        """The nets of a family, of all depths or of some."""
        wanted = None if depths is None else set(depths)
        return [n for n in self.nets if n.model == model and (wanted is None or n.depth in wanted)]


def data_text(config: Config) -> str:
    """The data set in words."""
    names = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "scikit-learn's digits"}
    data = config.data
    if data.name == "torchvision":
        name = " ".join(filter(None, (data.dataset, data.variant)))
    elif data.name == "image_folder":
        folder = Path(str(data.root)).name
        name = FOLDERS.get(folder) or f"images of {folder}"
    else:
        name = names.get(data.name) or data.name
    size = f" at {data.image_size}x{data.image_size} pixels" if data.image_size else ""
    split = ", a tenth of the training set held out for testing" if data.split != "test" else ""
    return f"{name}{size}{split}"


def recipe_text(config: Config) -> str:
    """The recipe in words: what differs from the paper's.

    With another optimizer it is not the paper's, and is not called so.
    """
    recipe, optimizer = config.recipe, config.optimizer
    paper = {
        "iterations": (64000, f"{recipe.iterations:,} iterations for 64,000"),
        "batch_size": (128, f"batches of {recipe.batch_size} for 128"),
        "learning_rate": (0.1, f"learning rate {recipe.learning_rate:g} for 0.1"),
        "drops": ([0.5, 0.75], f"drops at {recipe.drops} of the run"),
        "momentum": (0.9, f"momentum {recipe.momentum:g} for 0.9"),
        "weight_decay": (1e-4, f"weight decay {recipe.weight_decay:g} for 0.0001"),
        "padding": (4, f"padding {recipe.padding} for 4"),
        "flip": (True, "no mirror images"),
    }
    if optimizer:
        del paper["momentum"], paper["weight_decay"]  # its keywords say what it has of them
    differ = [text for key, (value, text) in paper.items() if getattr(recipe, key) != value]
    differ += [config.precision] if config.precision != "float32" else []
    if optimizer:
        return ", ".join([f"{optimizer_text(optimizer)} in place of the paper's SGD", *differ])
    return f"the paper's recipe but {', '.join(differ)}" if differ else "the paper's recipe"


def optimizer_text(optimizer: Optimizer) -> str:
    """An optimizer in words: AdamW (betas 0.9 and 0.999, weight decay 0.0001)."""
    said = []
    for keyword, value in optimizer.keywords.items():
        words = keyword.replace("_", " ")
        if isinstance(value, bool):
            said.append(words if value else f"no {words}")
        else:
            values = value if isinstance(value, list) else [value]
            said.append(
                f"{words} {' and '.join(f'{v:g}' if v is not None else 'none' for v in values)}"
            )
    return f"{optimizer.name} ({', '.join(said)})" if said else optimizer.name


def choose_experiment(outputs: str, experiment: str | None) -> str:
    """The experiment asked for, or the only one there is.

    Raises:
        ConfigError: it is empty.
        ResreproError: there is none, or there are several.
    """
    if experiment == "":
        raise ConfigError("experiment=: is empty; name an experiment's folder")
    if experiment is not None:
        return experiment
    there_are = find_experiments(outputs)
    if len(there_are) == 1:
        return there_are[0]
    names = f"; there are {', '.join(there_are)}" if there_are else ", and there are no runs"
    raise ResreproError(f"experiment=NAME is not given{names} in {outputs}")


def collect(outputs: str, experiment: str) -> list[Group]:
    """All runs of an experiment that have been evaluated, a group for each tag.

    Raises:
        ResreproError: there are no runs, a file is damaged, or runs of one tag differ in more
            than model, depth and seed.
    """
    runs: dict[str, list[Run]] = {}
    missing: dict[str, list[str]] = {}
    directories = find_runs(outputs, experiment)
    originals: dict[str, RunDirectory] = {}  # by each run's name, the directory that is called so
    for directory in directories:
        name = directory.config().name
        if name == directory.name or name not in originals:
            originals[name] = directory
    for directory in directories:
        config = directory.config()
        tag = _base_tag(config)
        lacks = missing.setdefault(tag, [])
        if directory is not originals[config.name]:
            lacks.append(f"{directory.name} is left out: it is a copy of {config.name}")
            continue
        summary, rows = directory.results()
        run = Run(directory, config, summary or {}, rows, directory.responses())
        if not run.rows:
            lacks.append(f"{directory.name} has not been evaluated yet")
            continue
        runs.setdefault(tag, []).append(run)
        if not run.complete:
            done = f"{run.rows[-1].iteration:,} of {config.recipe.iterations:,} iterations"
            lacks.append(f"{directory.name} has {done} ({run.summary['status']})")
    groups = [_group(experiment, tag, runs[tag], missing[tag]) for tag in sorted(runs)]
    groups = [group for group in groups if group.nets]
    if not groups:
        raise ResreproError(f"no run of {experiment} in {outputs} has been evaluated yet")
    return groups


def _base_tag(config: Config) -> str:
    """The tag, without what says that a run is a constructed solution."""
    tag = config.tag or ""
    return re.sub(r"-?constructed\d+$", "", tag) if config.constructed else tag


def _group(experiment: str, tag: str, runs: list[Run], missing: list[str]) -> Group:
    trained = [run for run in runs if run.origin is None or run.config.recipe.iterations]
    _check_comparable(trained)
    nets: dict[tuple[str, int], list[Run]] = {}
    for run in sorted(trained, key=lambda run: run.config.seed):
        nets.setdefault((run.config.model.name, run.config.depth), []).append(run)
    made = [Net(model, depth, nets[model, depth]) for model, depth in sorted(nets, key=_place)]
    apart = [net for net in made if net.complete and not len(net.iterations())]
    missing = missing + [f"{net.name}: its seeds share no evaluated iteration" for net in apart]
    return Group(
        experiment,
        tag or None,
        [net for net in made if net not in apart],
        [run for run in runs if run not in trained and run.complete],
        missing,
    )


def _place(net: tuple[str, int]) -> tuple[int, str, int]:
    """Plain nets first, then residual ones, then other families; each by depth."""
    model, depth = net
    order = FAMILY_ORDER.index(model) if model in FAMILY_ORDER else len(FAMILY_ORDER)
    return order, model, depth


def _check_comparable(runs: list[Run]) -> None:
    """Refuses to show runs side by side that differ in more than the net and the seed."""
    # Each family has its own.
    options: dict[str, str | None] = {}
    extensions: dict[str, dict[str, str] | None] = {}
    for other in runs:
        first = runs[0].config
        differ = [
            f"{key} {a} and {b}"
            for key, (a, b) in differences(first, other.config).items()
            if key not in FREE and not key.startswith("extensions.")
        ]
        option = options.setdefault(other.config.model.name, other.config.model.shortcut)
        if other.config.model.shortcut != option:
            differ.append(f"model.shortcut {option} and {other.config.model.shortcut}")
        code = extensions.setdefault(other.config.model.name, other.config.extensions)
        if other.config.extensions != code:
            differ.append("the extension's code")
        if runs[0].summary["data_digest"] != other.summary["data_digest"]:
            differ.append("the images")
        if differ:
            raise ResreproError(
                f"{first.name} and {other.config.name} cannot stand in one figure, they differ in "
                f"{'; '.join(differ)}; give one of them a tag or an experiment of its own"
            )
