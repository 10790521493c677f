"""From Python: what an experiment holds, and training a run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resrepro import extension
from resrepro.configuration import composition
from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError, ResreproError
from resrepro.runs.run_directory import COLUMNS, RunDirectory, find_runs

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from resrepro.networks import CifarNet


@dataclass(frozen=True)
class Run:
    """One run, read from its directory when it is asked.

    Attributes:
        path: its directory.
    """

    path: Path

    @property
    def name(self) -> str:
        """Such as plain-56-s0."""
        return self.path.name

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory(self.path)

    @property
    def config(self) -> Config:
        """Its configuration: run.config.depth, run.config.recipe.learning_rate."""
        return self._directory.config()

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json; empty where the run has not begun."""
        return self._directory.summary() or {}

    @property
    def curve(self) -> dict[str, np.ndarray]:
        """The columns of metrics.csv, one value an evaluation; errors in percent."""
        rows = self._directory.metrics()
        return {name: np.array([getattr(row, name) for row in rows]) for name in COLUMNS}

    def network(self) -> "CifarNet":
        """The net of the last checkpoint, on the CPU, in evaluation mode.

        It takes images as `batches` gives them: uint8 pixels, less the mean, over 255.

        Raises:
            ConfigError: it needs an extension that was not given; see `resrepro.use`.
            ResreproError: there is no checkpoint, or that of a complete run's end is lost.
        """
        from resrepro import networks

        config, summary = self.config, self.summary
        extension.require(config.extensions)
        checkpoint = self._directory.load_final_checkpoint()
        channels = checkpoint["network"]["conv.weight"].shape[1]
        network = networks.build(config.model, config.depth, summary["classes"], channels)
        network.load_state_dict(checkpoint["network"])
        return network.eval()

    def batches(self, split: str = "test") -> Iterator[tuple["Tensor", "Tensor"]]:
        """The images of a split ("train" or "test") as the net takes them, and their labels.

        Yields:
            float32 (N, C, H, W) and int64 (N,), without augmentation, in large batches.

        Raises:
            ConfigError: there is no such split.
            ResreproError: the data cannot be had, or are not those that it was trained on.
        """
        import torch

        from resrepro.data import load
        from resrepro.data.batches import Batches

        if split not in ("train", "test"):
            raise ConfigError(f"{split!r} is no split; there are train and test")
        config, data = self.config, load(self.config.data)
        self._directory.check_data(self.summary["data_digest"], data.digest)
        made = Batches(data, config.data.mean, config.recipe, config.seed, torch.device("cpu"))
        return made.unaugmented(split)


@dataclass(frozen=True)
class Experiment:
    """The runs of an experiment.

    Attributes:
        path: the folder that holds their directories.
    """

    path: Path

    @cached_property
    def runs(self) -> list[Run]:
        """All of them, complete or not, in the order of their names."""
        return [Run(run.path) for run in find_runs(self.path.parent, self.path.name)]

    def __getitem__(self, name: str) -> Run:
        """The run of a name, such as plain-56-s0."""
        for run in self.runs:
            if run.name == name:
                return run
        raise KeyError(f"{name}; there are {', '.join(run.name for run in self.runs)}")

    def __contains__(self, name: object) -> bool:
        """Whether there is a run of a name."""
        return any(run.name == name for run in self.runs)

    def curves(self) -> "pd.DataFrame":
        """A row an evaluation: the run, its model, depth, seed and tag, and its errors.

        Raises:
            ResreproError: pandas is not installed.
        """
        frames = [_pandas().DataFrame({**_who(run), **run.curve}) for run in self.runs]
        return _pandas().concat(frames, ignore_index=True)

    def finals(self) -> "pd.DataFrame":
        """A row a run: its name, model, depth, seed and tag, and summary.json's single values.

        Raises:
            ResreproError: pandas is not installed.
        """
        rows = [{**_who(run), **_single_values(run.summary)} for run in self.runs]
        return _pandas().DataFrame(rows)


def open(path: str | Path) -> Experiment:  # noqa: A001 (resrepro.open is what it is called)
    """The experiment in a folder, such as outputs/digits.

    Raises:
        ResreproError: there are no runs.
    """
    experiment = Experiment(Path(path).expanduser().absolute())
    _ = experiment.runs  # looks for them
    return experiment


def train(overrides: Sequence[str]) -> Run:
    """Trains one run, shown as on the command line; an unfinished one is gone on with.

    Args:
        overrides: as for `resrepro train`: ["model=plain", "depth=20", "data=digits"].

    Raises:
        ConfigError: they make no configuration, or more than one.
        ResreproError: the run failed.
    """
    from resrepro.studies.sweep import train_one

    if isinstance(overrides, str):
        raise ConfigError(f"{overrides!r}: give a list of overrides, such as [{overrides!r}]")
    runs = composition.expand("train", [list(overrides)], None)
    if len(runs) != 1:
        raise ConfigError(f"these are {len(runs)} runs; give one at a time")
    train_one(runs[0])
    return Run(runs[0].directory)


def _who(run: Run) -> dict[str, Any]:
    config = run.config
    return {
        "run": run.name,
        "model": config.model.name,
        "depth": config.depth,
        "seed": config.seed,
        "tag": config.tag or "",
    }


def _single_values(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if not isinstance(value, dict | list)}


def _pandas() -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise ResreproError("pandas is not installed; pip install 'resrepro[notebook]'") from error
    return pd
