"""Trains one net: a configuration becomes a run directory (paper, section 4.2).

The loop can be left after any iteration and entered again there: what a batch is, how it is
cropped and what the learning rate is are functions of the iteration, and all else that changes
is the net, its momentum and `State`, which is what a checkpoint holds.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch

from resrepro import interruption, networks
from resrepro.configuration.schema import Config, Constructed, Model, Recipe
from resrepro.data import Dataset, load
from resrepro.errors import Diverged, Interrupted, ResreproError, one_line
from resrepro.progress import Progress, Watcher
from resrepro.runs.provenance import provenance
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.training import devices
from resrepro.training.schedule import learning_rate, warms_up
from resrepro.training.step import Step

WARM_UP_WINDOW = 25  # iterations over which the warm-up's training error is measured
PROGRESS_SECONDS = 0.5  # between two looks at the running training error
EVALUATION_SHARE = 0.2  # of the time, at most about, goes into the default's evaluations
CHECKPOINT_SHARE = 0.005  # of the time, at most, goes into checkpoints at evaluations


@dataclass
class State:
    """All that changes in a run beside its `Step`.

    Attributes:
        iteration: how many are done.
        learning_rate: of the last one.
        warming_up: whether the rate is still the warm-up's.
        evaluated: the iteration of the last row. Before the first it is 0, and -1 for a
            constructed solution, whose first row comes before all training.
        rows: the evaluations.
        seconds: that the run has taken.
        evaluation_seconds: of these, in evaluating and saving.
        devices: the kinds of device it ran on, in order.
    """

    warming_up: bool
    iteration: int = 0
    learning_rate: float = 0.0
    evaluated: int = 0
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    devices: list[str] = field(default_factory=list)


def train(config: Config, watcher: Watcher) -> dict[str, Any]:
    """Trains a run to its end, from wherever it was left.

    Returns:
        The run's summary.

    Raises:
        ConfigError: the device or the directory do not go with the configuration.
        Diverged: the loss stopped being finite.
        ResreproError: the data cannot be had, or the checkpoints cannot be used.
        Interrupted: a signal came; the run is saved, and the same call goes on with it.
    """
    run = RunDirectory(config.directory)
    if not run.exists():
        devices.check(config)  # what cannot run here leaves no directory behind
    run.open(config)
    with run.locked(), _explained():
        data, summary = None, _intact_summary(run)
        if trained_on := run.data_digest():
            data = load(config.data)
            run.check_data(trained_on, data.digest)  # before anything is written
        if summary and summary["status"] == "complete" and _keeps_its_weights(run, config):
            watcher.line(f"{run.path} is complete already")
            return summary
        if summary and summary["status"] == "diverged":
            raise Diverged(f"{summary['reason']}; {run.path} keeps what there was before")
        training = None
        try:
            with _explained():
                training = Training(config, run, watcher, data or load(config.data))
                return training.run_to_end()
        except BaseException as error:
            _write_ending(run, training, error)
            raise


@contextmanager
def _explained() -> Iterator[None]:
    """Turns a lack of memory, and of what compile=true needs, into a line that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        # Of a GPU's memory PyTorch speaks by a type of its own, of the CPU's in words.
        lacks = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
        if lacks or "allocate memory" in text or "bad_alloc" in text:
            raise ResreproError(
                "there is not enough memory for this net and batch; less is needed with "
                "activation_checkpointing=true or a smaller recipe.batch_size, model.width or depth"
            ) from error
        if "InvalidCxxCompiler" in text:
            raise ResreproError(
                "compile=true needs a C++ compiler, and there is none here; install g++ or use "
                "compile=false"
            ) from error
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            line = text.splitlines()[0]
            raise ResreproError(f"compile=true: {line}; use compile=false") from error
        raise


def _intact_summary(run: RunDirectory) -> dict[str, Any] | None:
    """The summary, if it and metrics.csv are what was written; else both are made anew."""
    try:
        run.metrics()
        return run.summary()
    except ResreproError:
        return None


def _keeps_its_weights(run: RunDirectory, config: Config) -> bool:
    """Whether a complete run's last checkpoint is whole; one that was removed is not missed.

    Raises:
        ResreproError: it is damaged, and so is the one before.
    """
    if not run.has_checkpoint():
        return True
    checkpoint, warning = run.load_checkpoint(config)
    assert checkpoint is not None
    return warning is None and checkpoint["iteration"] == config.recipe.iterations


def _write_ending(run: RunDirectory, training: "Training | None", error: BaseException) -> None:
    """Writes down how a run ended that is not complete, as far as the disk lets it."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        status, reason = "interrupted", "stopped by a signal; the same command goes on"
    elif isinstance(error, Diverged):
        status, reason = "diverged", one_line(error)
    else:
        status, reason = "failed", one_line(error)
    try:
        if training is not None:
            # Only what `interruption.check` raised came between two iterations. After a
            # KeyboardInterrupt or an error the last checkpoint is what can be gone on from.
            if isinstance(error, Interrupted):
                training.save()
            elif status != "diverged" and not run.has_checkpoint():
                training.state.rows.clear()
            training.write(status, reason)
        else:
            summary = _intact_summary(run) or {"iteration": 0}
            rows = run.metrics() if "rows" in summary else []
            run.write_summary(summary | {"status": status, "reason": reason}, rows)
        run.log(f"{status}: {reason}")
        if training is not None and isinstance(error, Interrupted):
            training.watcher.progress(training.progress())
    except Diverged as diverged:  # as it turned out when it was to be saved
        _write_ending(run, training, diverged)
    except OSError:
        pass  # what ended the run is told; that it could not be written down too follows from it


def _construct(network: networks.CifarNet, model: Model, origin: Constructed) -> None:
    """Gives a net the weights of a trained shallower one, and identity layers."""
    source = RunDirectory(Path(origin.run))
    if source.checkpoint_digest() != origin.weights:
        raise ResreproError(f"{source.path} has been trained on since this run was constructed")
    checkpoint, _ = source.load_checkpoint(source.config())
    assert checkpoint is not None
    classes, channels = network.fc.out_features, network.conv.in_channels
    shallow = networks.build(model, origin.depth, classes, channels)
    shallow.load_state_dict(checkpoint["network"])
    networks.construct(network, shallow)


def evaluation_interval(recipe: Recipe, train_images: int, test_images: int) -> int:
    """Iterations from one row to the next: an epoch, or a fortieth of the run if that is less.

    But not so few that evaluating, which is about a third of an iteration's work an image, takes
    more than `EVALUATION_SHARE` of the training's time.
    """
    wanted = min(math.ceil(train_images / recipe.batch_size), recipe.iterations // 40)
    cheap = math.ceil(test_images / 3 / (EVALUATION_SHARE * recipe.batch_size))
    return max(wanted, cheap)


class Training:
    """One run in progress: the net, its optimizer, the data and the state, on a device.

    Args:
        config: the run's.
        run: where it is saved, and goes on from.
        watcher: who is told of it.
        data: the configuration's.
    """

    def __init__(self, config: Config, run: RunDirectory, watcher: Watcher, data: Dataset) -> None:
        self.config, self.recipe, self.run, self.watcher = config, config.recipe, run, watcher
        self.device = devices.check(config)
        self.peak_memory = devices.PeakMemory(self.device)
        checkpoint, warning = run.load_checkpoint(config)
        # Threads set the order of sums: a run goes on with as many as it began with.
        self.threads = config.threads or (checkpoint or {}).get("threads")
        devices.set_up(config, self.threads)
        self.threads = torch.get_num_threads()

        self.data_digest, self.classes = data.digest, data.classes
        self.step = Step(config, data, self.device)
        if config.constructed and not checkpoint:
            _construct(self.step.network, config.model, config.constructed)
        self.state = State(
            warming_up=warms_up(self.recipe, config.depth),
            evaluated=-1 if config.constructed else 0,
        )
        if warning:
            self.say(f"warning: {warning}")
        if checkpoint:
            self.restore(checkpoint)
        self.state.devices.append(devices.describe(self.device))
        self.started = self.last_save = self.last_look = time.monotonic()
        self.seconds_before = self.state.seconds
        self.save_seconds = 0.0
        self.evaluate_every = config.evaluate_every or evaluation_interval(
            self.recipe, len(data.train_labels), len(data.test_labels)
        )
        self.epoch = len(data.train_labels)

    def run_to_end(self) -> dict[str, Any]:
        """Trains, evaluates and saves until the recipe's last iteration."""
        state, last = self.state, self.recipe.iterations
        self.say(self.headline())
        self.watcher.progress(self.progress())
        self.write("running")
        while True:
            interruption.check()
            if self.evaluation_is_due():
                self.evaluate()
            if state.iteration == last:
                return self.finish()
            self.iterate()

    def iterate(self) -> None:
        """One iteration."""
        for _ in self.parts():
            pass

    def parts(self) -> Iterator[str]:
        """One iteration, stopping after each of its parts with the part's name."""
        state = self.state
        state.learning_rate = self.rate(state.iteration)
        yield from self.step.parts(state.iteration, state.learning_rate)
        state.iteration += 1
        self.end_warm_up()
        self.look_up_from_work()
        yield "bookkeeping"

    def headline(self) -> str:
        """What is about to happen, in a line."""
        verb = (
            f"goes on from iteration {self.state.iteration}" if self.state.iteration else "begins"
        )
        parameters = networks.parameter_count(self.step.network)
        return (
            f"{self.run.name} {verb}: {parameters:,} parameters, {self.recipe.iterations:,} "
            f"iterations of {self.recipe.batch_size} images on {self.state.devices[-1]}"
        )

    def end_warm_up(self) -> None:
        """Ends the warm-up at the first window whose training error is low enough."""
        state = self.state
        if state.warming_up and state.iteration % WARM_UP_WINDOW == 0:
            wrong = self.step.read().wrong_in_window
            error = 100 * wrong / (WARM_UP_WINDOW * self.recipe.batch_size)
            self.step.begin_window()
            if error < self.recipe.warm_up.until_error:
                state.warming_up = False
                self.say(
                    f"warm-up ends at iteration {state.iteration}, training error {error:.1f}%"
                )

    def look_up_from_work(self) -> None:
        """Now and then: checks the loss, tells the progress, and saves."""
        now = time.monotonic()
        if now - self.last_look >= PROGRESS_SECONDS:
            self.last_look = now
            self.watcher.progress(self.progress())
        if now - self.last_save >= self.config.checkpoint_seconds:
            self.save()
            self.write("running")

    def progress(self) -> Progress:
        """How far the run is; checks that its loss is finite."""
        state = self.state
        sums = self.step.read()
        if sums.not_finite_at:
            raise self.diverged(sums.not_finite_at)
        images = self.recipe.batch_size * (state.iteration - max(0, state.evaluated))
        row = state.rows[-1] if state.rows else None
        return Progress(
            state.iteration,
            self.recipe.iterations,
            train_error=100 * sums.wrong / images if images else row.train_error if row else None,
            test_error=row.test_error if row else None,
            images_per_second=self.images_per_second(),
        )

    def diverged(self, iteration: int) -> Diverged:
        """What to raise when the loss stopped being finite."""
        rate = self.rate(max(0, iteration - 1))
        return Diverged(f"the loss is not finite at iteration {iteration}, learning rate {rate:g}")

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration."""
        return learning_rate(self.recipe, iteration, self.state.warming_up)

    def images_per_second(self) -> float | None:
        """Training speed without evaluations; None before the first iteration."""
        images = self.state.iteration * self.recipe.batch_size
        return images / (self.seconds() - self.state.evaluation_seconds) if images else None

    def evaluation_is_due(self) -> bool:
        """Whether this iteration's row is yet to be written."""
        state = self.state
        due = (
            state.iteration % self.evaluate_every == 0 or state.iteration == self.recipe.iterations
        )
        return due and state.iteration > state.evaluated

    def evaluate(self) -> None:
        """Adds a row: the training batches since the last one, and the test set."""
        state = self.state
        self.progress()  # raises where the loss is not finite
        began = time.monotonic()
        train_loss, train_error = self.running_errors()
        test_loss, test_error = self.step.errors("test")
        row = Row(
            iteration=state.iteration,
            epoch=state.iteration * self.recipe.batch_size / self.epoch,
            learning_rate=state.learning_rate,
            train_loss=train_loss,
            train_error=train_error,
            test_loss=test_loss,
            test_error=test_error,
            seconds=self.seconds(),
        )
        state.rows.append(row)
        state.evaluated = state.iteration
        self.step.begin_row()
        if self.save_seconds <= CHECKPOINT_SHARE * (time.monotonic() - self.last_save):
            self.save()
        self.write("running")
        self.run.log(
            f"iteration {row.iteration}: train {row.train_error:.2f}%, test {row.test_error:.2f}%, "
            f"loss {row.train_loss:.4f}, {self.images_per_second() or 0:.0f} images/s"
        )
        self.watcher.progress(self.progress())
        state.evaluation_seconds += time.monotonic() - began

    def running_errors(self) -> tuple[float, float]:
        """Mean loss and error (percent) over the augmented batches since the last row.

        Before all training, where there were none: over the training images as they are.
        """
        state = self.state
        if state.iteration == 0:
            return self.step.errors("train")
        batches = state.iteration - max(0, state.evaluated)
        sums = self.step.read()
        return sums.loss / batches, 100 * sums.wrong / (batches * self.recipe.batch_size)

    def seconds(self) -> float:
        """That the run has taken, over all its parts."""
        return self.seconds_before + time.monotonic() - self.started

    def finish(self) -> dict[str, Any]:
        """Saves a run whose last iteration is done, and sums it up."""
        _, clean = self.step.errors("train")
        self.save()
        summary = self.summary("complete") | {"clean_train_error": clean}
        self.run.write_results(summary, self.state.rows)
        last = self.state.rows[-1]
        self.say(
            f"{self.run.name} is complete: final training error {last.train_error:.2f}%, "
            f"test error {last.test_error:.2f}%, {summary['seconds']:.0f} s"
        )
        return summary

    def write(self, status: str, reason: str | None = None) -> None:
        """Writes metrics.csv and summary.json."""
        self.run.write_results(self.summary(status, reason), self.state.rows)

    def summary(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """What summary.json says of the run at this moment."""
        state, rows = self.state, self.state.rows
        return {
            "status": status,
            "reason": reason,
            "iteration": state.iteration,
            "iterations": self.recipe.iterations,
            "classes": self.classes,
            "train_images": len(self.step.batches.train[1]),
            "test_images": len(self.step.batches.test[1]),
            "final_train_error": rows[-1].train_error if rows else None,
            "final_test_error": rows[-1].test_error if rows else None,
            "best_test_error": min(row.test_error for row in rows) if rows else None,
            "clean_train_error": None,
            "parameters": networks.parameter_count(self.step.network),
            "images_per_second": self.images_per_second(),
            "peak_memory_bytes": self.peak_memory.bytes(),
            "seconds": self.seconds(),
            "device": state.devices[-1],
            "devices": list(dict.fromkeys(state.devices)),
            "threads": self.threads,
            "precision": self.config.precision,
            "compiled": self.config.compile,
            "deterministic": self.config.deterministic,
            "data_digest": self.data_digest,
            **provenance(),
        }

    def say(self, line: str) -> None:
        """Tells the watcher and train.log."""
        self.run.log(line)
        self.watcher.line(line)

    def save(self) -> None:
        """Writes a checkpoint, unless loss or weights are not finite: the last good one stays."""
        self.progress()
        if not self.step.is_finite():
            raise self.diverged(self.state.iteration + 1)
        began, state = time.monotonic(), self.state
        self.run.save_checkpoint(
            {
                "data_digest": self.data_digest,
                "torch": str(torch.__version__),
                "threads": self.threads,
                **self.step.state(),
                "warming_up": state.warming_up,
                "iteration": state.iteration,
                "learning_rate": state.learning_rate,
                "evaluated": state.evaluated,
                "rows": [list(astuple(row)) for row in state.rows],
                "seconds": self.seconds(),
                "evaluation_seconds": state.evaluation_seconds,
                "devices": list(dict.fromkeys(state.devices)),
            },
            self.config,
        )
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - began

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Puts the run where a checkpoint left it.

        Raises:
            ResreproError: the data are not those it was trained on.
        """
        self.run.check_data(checkpoint["data_digest"], self.data_digest)
        self.step.load_state(checkpoint)
        self.state = State(
            warming_up=checkpoint["warming_up"],
            iteration=checkpoint["iteration"],
            learning_rate=checkpoint["learning_rate"],
            evaluated=checkpoint["evaluated"],
            rows=[Row(*values) for values in checkpoint["rows"]],
            seconds=checkpoint["seconds"],
            evaluation_seconds=checkpoint["evaluation_seconds"],
            devices=checkpoint["devices"],
        )
        here = {"torch": str(torch.__version__), "threads": self.threads}
        here["device"] = devices.describe(self.device)
        there = checkpoint | {"device": checkpoint["devices"][-1]}
        for key, value in here.items():
            if there[key] != value:
                self.say(
                    f"warning: the run goes on with {key} {value} and was trained with "
                    f"{there[key]}; the last bits will differ from those of an unbroken run"
                )
