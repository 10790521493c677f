"""The training loop: iterations, evaluations and checkpoints of one run (paper, section 4.2).

It can be left after any iteration and entered again there: what a batch is, how it is cropped
and what the learning rate is are functions of the iteration, and all else that changes is the
net, its optimizer and `State`, which is what a checkpoint holds.
"""

import math
import time
from pathlib import Path
from typing import Any

from resrepro import interruption, networks
from resrepro.configuration.schema import Config, Constructed, Model, Recipe
from resrepro.data import Dataset
from resrepro.errors import Diverged, ResreproError
from resrepro.progress import Progress, Watcher, forecast
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.training import devices
from resrepro.training.record import Record, State
from resrepro.training.schedule import learning_rate, warms_up
from resrepro.training.step import Step

WARM_UP_WINDOW = 25  # iterations over which the warm-up's training error is measured
PROGRESS_SECONDS = 0.5  # between two looks at the running training error
EVALUATION_SHARE = 0.2  # of the time, at most about, goes into the default's evaluations
CHECKPOINT_SHARE = 0.005  # of the time, at most, goes into checkpoints at evaluations


class Training:
    """One run in progress: the net, its optimizer, the data and the state, on a device.

    Args:
        config: the run's.
        run: where it is saved, and goes on from.
        watcher: who is told of it.
        data: the configuration's.
    """

    def __init__(self, config: Config, run: RunDirectory, watcher: Watcher, data: Dataset) -> None:
        self.recipe, self.run, self.watcher = config.recipe, run, watcher
        device = devices.check(config)
        checkpoint, warning = run.load_checkpoint(config)
        # Threads set the order of sums: a run goes on with as many as it began with.
        devices.set_up(config, config.threads or (checkpoint or {}).get("threads"))
        self.step = Step(config, data, device)
        self.state = State(
            warming_up=warms_up(self.recipe, config.depth),
            evaluated=-1 if config.constructed else 0,
        )
        self.record = Record(config, run, data, self.step, self.state)
        warnings = [warning] if warning else []
        if checkpoint:
            warnings += self.record.restore(checkpoint)
        elif config.constructed:
            _construct(self.step.network, config.model, config.constructed)
        for line in warnings:
            self.say(f"warning: {line}")
        if data.note and not checkpoint:
            self.say(f"note: {data.note}")
        self.epoch = len(data.train_labels)
        self.evaluate_every = config.evaluate_every or evaluation_interval(
            self.recipe, self.epoch, len(data.test_labels)
        )
        self.checkpoint_seconds = config.checkpoint_seconds
        self.forecast = forecast(self.run.name, self.recipe.iterations)
        self.looked = self.saved = time.monotonic()
        self.speed: float | None = None  # images a second up to the last row
        self.row_began = (self.state.iteration, self.record.stopwatch.training_seconds())
        self.save_seconds = 0.0

    def run_to_end(self) -> dict[str, Any]:
        """Trains, evaluates and saves until the recipe's last iteration. Returns the summary."""
        state, last = self.state, self.recipe.iterations
        self.say(self.headline())
        self.watcher.progress(self.progress())
        self.record.write("running")
        while True:
            interruption.check()
            if self.evaluation_is_due():
                self.evaluate()
            if state.iteration == last:
                return self.finish()
            self.iterate()

    def iterate(self) -> None:
        """One iteration; now and then the progress is told, and the run saved."""
        state = self.state
        state.learning_rate = self.rate(state.iteration)
        self.step(state.iteration, state.learning_rate)
        state.iteration += 1
        if state.warming_up and state.iteration % WARM_UP_WINDOW == 0:
            self.end_warm_up()
        now = time.monotonic()
        if now - self.looked >= PROGRESS_SECONDS:
            self.looked = now
            self.watcher.progress(self.progress())
            if line := self.forecast(state.iteration, now):
                self.say(line)
        if now - self.saved >= self.checkpoint_seconds:
            with self.record.stopwatch.evaluating():
                self.save()
                self.record.write("running")

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration."""
        return learning_rate(self.recipe, iteration, self.state.warming_up)

    def end_warm_up(self) -> None:
        """Ends the warm-up if this window's training error was low enough."""
        wrong = self.step.read().wrong_in_window
        error = 100 * wrong / (WARM_UP_WINDOW * self.recipe.batch_size)
        self.step.begin_window()
        if error < self.recipe.warm_up.until_error:
            self.state.warming_up = False
            at = self.state.iteration
            self.say(f"warm-up ends at iteration {at}, training error {error:.1f}%")

    def evaluation_is_due(self) -> bool:
        """Whether this iteration's row is yet to be written."""
        at, last = self.state.iteration, self.recipe.iterations
        return (at % self.evaluate_every == 0 or at == last) and at > self.state.evaluated

    def evaluate(self) -> None:
        """Adds a row: the training batches since the last one, and the test set."""
        state = self.state
        self.speed = self.progress().images_per_second  # raises where the loss is not finite
        self.row_began = (state.iteration, self.record.stopwatch.training_seconds())
        with self.record.stopwatch.evaluating():
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
                seconds=self.record.stopwatch.seconds(),
            )
            state.rows.append(row)
            state.evaluated = state.iteration
            self.step.begin_row()
            if self.save_seconds <= CHECKPOINT_SHARE * (time.monotonic() - self.saved):
                self.save()
            self.record.write("running")
            self.run.log(
                f"iteration {row.iteration}: train {row.train_error:.2f}%, "
                f"test {row.test_error:.2f}%, loss {row.train_loss:.4f}, "
                f"{self.speed or 0:.0f} images/s"
            )
            self.watcher.progress(self.progress())

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

    def save(self) -> None:
        """Writes a checkpoint, unless loss or weights are not finite: the last good one stays."""
        self.progress()
        if not self.step.is_finite():
            raise self.diverged(self.state.iteration + 1)
        began = time.monotonic()
        self.record.save()
        self.saved = time.monotonic()
        self.save_seconds = self.saved - began

    def finish(self) -> dict[str, Any]:
        """Saves a run whose last iteration is done, and sums it up."""
        with self.record.stopwatch.evaluating():
            _, clean = self.step.errors("train")
            self.save()
        summary = self.record.write("complete", clean_train_error=clean)
        last = self.state.rows[-1]
        self.say(
            f"{self.run.name} is complete: final training error {last.train_error:.2f}%, "
            f"test error {last.test_error:.2f}%, {summary['seconds']:.0f} s"
        )
        return summary

    def headline(self) -> str:
        """What is about to happen, in a line."""
        done = self.state.iteration
        verb = f"goes on from iteration {done}" if done else "begins"
        return (
            f"{self.run.name} {verb}: {self.record.parameters:,} parameters, "
            f"{self.recipe.iterations:,} iterations of {self.recipe.batch_size} images "
            f"on {self.record.devices[-1]}"
        )

    def progress(self) -> Progress:
        """How far the run is.

        Raises:
            Diverged: the loss is not finite.
        """
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

    def images_per_second(self) -> float | None:
        """Training speed of late: since the last row or, right after it, up to it.

        The mean over the whole run, summary.json's, says little of a run that goes on elsewhere.
        """
        iteration, seconds = self.row_began
        images = self.recipe.batch_size * (self.state.iteration - iteration)
        taken = self.record.stopwatch.training_seconds() - seconds
        return images / taken if images else self.speed

    def diverged(self, iteration: int) -> Diverged:
        """What to raise when the loss stopped being finite."""
        rate = self.rate(max(0, iteration - 1))
        return Diverged(f"the loss is not finite at iteration {iteration}, learning rate {rate:g}")

    def say(self, line: str) -> None:
        """Tells the watcher and train.log."""
        self.run.log(line)
        self.watcher.line(line)


def evaluation_interval(recipe: Recipe, train_images: int, test_images: int) -> int:
    """Iterations from one row to the next: an epoch, or a fortieth of the run if that is less.

    But not so few that evaluating, which is about a third of an iteration's work an image, takes
    more than `EVALUATION_SHARE` of the training's time.
    """
    wanted = min(math.ceil(train_images / recipe.batch_size), recipe.iterations // 40)
    cheap = math.ceil(test_images / 3 / (EVALUATION_SHARE * recipe.batch_size))
    return max(wanted, cheap)


def _construct(network: networks.CifarNet, model: Model, origin: Constructed) -> None:
    """Gives a net the weights of a trained shallower one, and identity layers."""
    source = RunDirectory(Path(origin.run))
    if source.checkpoint_digest() != origin.weights:
        raise ResreproError(f"{source.path} has been trained on since this run was constructed")
    checkpoint = source.load_final_checkpoint()
    classes, channels = network.fc.out_features, network.conv.in_channels
    shallow = networks.build(model, origin.depth, classes, channels)
    shallow.load_state_dict(checkpoint["network"])
    networks.construct(network, shallow)
