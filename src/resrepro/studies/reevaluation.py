"""A saved net's errors once more, beside what its run directory says of them.

Nothing is written. On its own data, and with the device, threads and arithmetic that it was
trained with, the numbers are the recorded ones to the last digit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from resrepro import extension
from resrepro.configuration.schema import Config, Data, from_mapping
from resrepro.data import Dataset, load
from resrepro.data.batches import Batches
from resrepro.errors import ConfigError, ResreproError
from resrepro.progress import bar
from resrepro.runs.run_directory import RunDirectory
from resrepro.training import devices
from resrepro.training.record import then_and_now
from resrepro.training.step import Step

HEADERS = ("run", "split", "images", "error %", "recorded", "loss", "recorded")


@dataclass(frozen=True)
class Measured:
    """A split's error (percent) and mean loss now, and as recorded; None where it is not."""

    split: str
    images: int
    error: float
    loss: float
    recorded_error: float | None
    recorded_loss: float | None

    def pairs(self) -> dict[str, tuple[float, float]]:
        """The numbers that were recorded: now and then."""
        pairs = {
            f"{self.split} error": (self.error, self.recorded_error),
            f"{self.split} loss": (self.loss, self.recorded_loss),
        }
        return {name: (now, then) for name, (now, then) in pairs.items() if then is not None}


@dataclass(frozen=True)
class Evaluated:
    """A run's net, measured.

    Attributes:
        name: the run's.
        splits: the training and the test images.
        is_own_data: whether they are those that it was trained on.
        remarks: what one has to know in order to compare.
    """

    name: str
    splits: list[Measured]
    is_own_data: bool
    remarks: list[str]


class _Counted(Batches):
    """Batches that a bar counts as they are used."""

    shown: "tqdm[Any]"

    def unaugmented(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().unaugmented(split):
            yield images, labels
            self.shown.update(len(labels))


def evaluations(paths: list[Path], settings: dict[str, Any], data: Data | None) -> Iterator[str]:
    """Evaluates runs one after the other.

    Args:
        paths: their directories.
        settings: as for `evaluate`.
        data: in place of each run's own.

    Yields:
        A line for each of several runs, then the table of all and what it shows.

    Raises:
        ConfigError: a directory holds no run, or a setting or the data do not go with it.
        ResreproError: it has no checkpoint, or data cannot be had.
    """
    runs = [RunDirectory(path.expanduser()) for path in paths]
    for run in runs:
        run.config()
        if not run.has_checkpoint():
            raise ResreproError(f"{run.path} has no checkpoint to evaluate; train it first")
    all_of_them = []
    for run in runs:
        one = evaluate(run, settings, data)
        all_of_them.append(one)
        if len(runs) > 1:
            yield f"{one.name}: " + ", ".join(f"{s.split} {s.error:.2f}%" for s in one.splits)
    yield f"{table(all_of_them)}\n"
    for one in all_of_them:
        yield from one.remarks
    yield from comparison(all_of_them)


def evaluate(run: RunDirectory, settings: dict[str, Any], data: Data | None = None) -> Evaluated:
    """The errors of the net in a run's last checkpoint, in evaluation mode, on both splits.

    From other data the mean is subtracted that the net was trained with.

    Args:
        run: the run.
        settings: device, precision and compile; None leaves the run's own.
        data: in place of its own.

    Raises:
        ConfigError: a setting or the data do not go with the net.
        ResreproError: the checkpoints cannot be used, or data cannot be had.
    """
    trained = run.config()
    extension.require(trained.extensions)
    checkpoint, warning = run.load_checkpoint(trained)
    if checkpoint is None:
        raise ResreproError(f"{run.path} has no checkpoint to evaluate; train it first")
    chosen = {key: value for key, value in settings.items() if value is not None}
    here = replace(trained, cuda_graph=False, **chosen)
    config = from_mapping(here.to_dict(), is_used=False)
    device = devices.check(config)
    devices.set_up(config, checkpoint["threads"])
    of = data or config.data
    images = load(of)
    # The digest is of all images, whichever part of them is held out.
    is_own = (images.digest, of.split) == (checkpoint["data_digest"], config.data.split)
    own = images if is_own or data is None else load(config.data)
    _check_fits(run, own, images)
    step = Step(config, own, device)
    step.load_state(checkpoint)
    batches = _Counted(
        images, config.data.mean, config.recipe, config.seed, device, config.data.resident
    )
    batches.mean, step.batches = step.batches.mean, batches
    count = len(images.train_labels) + len(images.test_labels)
    with bar(count, run.name, "image") as batches.shown:
        splits = _measure(run, step, checkpoint, of.split)
    remarks = [f"warning: {warning}"] if warning else []
    remarks += _remarks(trained, config, checkpoint, own.digest, device)
    return Evaluated(run.name, splits, is_own, [f"{run.name}: {remark}" for remark in remarks])


def _check_fits(run: RunDirectory, own: Dataset, images: Dataset) -> None:
    of_own, of_images = (
        f"{one.classes} classes of {'x'.join(map(str, one.train_images.shape[1:]))}"
        for one in (own, images)
    )
    if of_own != of_images:
        raise ConfigError(
            f"{run.path} was trained on images of {of_own} (channels, height, width), and these "
            f"are of {of_images}; data.image_size=N averages down"
        )


def _measure(
    run: RunDirectory, step: Step, checkpoint: dict[str, Any], split: str
) -> list[Measured]:
    summary, rows = run.results()
    row = rows[-1] if rows and rows[-1].iteration == checkpoint["iteration"] else None
    clean = summary.get("clean_train_error") if summary and row else None
    loss, error = step.errors("train")
    train = Measured("training", len(step.batches.train[1]), error, loss, clean, None)
    loss, error = step.errors("test")
    recorded = (row.test_error, row.test_loss) if row else (None, None)
    return [train, Measured(split, len(step.batches.test[1]), error, loss, *recorded)]


def _remarks(
    trained: Config, config: Config, checkpoint: dict[str, Any], digest: str, device: torch.device
) -> Iterator[str]:
    """What one has to know in order to compare."""
    iteration, iterations = checkpoint["iteration"], trained.recipe.iterations
    if iteration < iterations:
        yield f"is the net of iteration {iteration:,} of {iterations:,}"
    if digest != checkpoint["data_digest"]:
        yield (
            f"warning: was trained on other data than there is now (SHA-256 "
            f"{checkpoint['data_digest'][:12]}…, now {digest[:12]}…)"
        )
    pairs = then_and_now(checkpoint, device) | {
        "precision": (trained.precision, config.precision),
        "compile": (trained.compile, config.compile),
    }
    for key, (then, now) in pairs.items():
        if then != now:
            yield f"was trained with {key} {then}, and is evaluated with {now}: digits may differ"


def table(evaluated: list[Evaluated]) -> str:
    """A row a split."""
    rows = [
        (
            one.name if split is one.splits[0] else "",
            split.split,
            f"{split.images:,}",
            *map(_number, (split.error, split.recorded_error, split.loss, split.recorded_loss)),
        )
        for one in evaluated
        for split in one.splits
    ]
    align = ("left", "left", *["right"] * 5)
    return tabulate(rows, HEADERS, "simple", colalign=align, disable_numparse=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def comparison(evaluated: list[Evaluated]) -> Iterator[str]:
    """Whether the numbers are the recorded ones, in words."""
    if any(not one.is_own_data for one in evaluated):
        yield "What is recorded is of the run's own data; these are others."
    own = [one for one in evaluated if one.is_own_data]
    pairs = {
        f"{one.name}: {name}": pair
        for one in own
        for split in one.splits
        for name, pair in split.pairs().items()
    }
    differ = {n: p for n, p in pairs.items() if p[0] != p[1] and not all(map(math.isnan, p))}
    for name, (now, then) in differ.items():
        yield f"{name} is {now!r}, and was recorded as {then!r}"
    if pairs and not differ:
        yield f"Equal to what is recorded, to the last digit: {len(pairs)} of {len(pairs)} numbers."
    elif pairs:
        yield f"{len(pairs) - len(differ)} of {len(pairs)} numbers are equal to the last digit."
    elif own:
        yield "Nothing is recorded of these nets at these iterations."
