"""What is written of a run: what a checkpoint holds and what summary.json says, listed once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from typing import Any

import torch

from resrepro import networks
from resrepro.configuration.schema import Config
from resrepro.data import Dataset
from resrepro.runs.provenance import provenance
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.training import devices
from resrepro.training.step import Step


@dataclass
class State:
    """All that changes in a run beside its `Step` and the time it takes.

    Attributes:
        iteration: how many are done.
        learning_rate: of the last one.
        warming_up: whether the rate is still the warm-up's.
        evaluated: the iteration of the last row. Before the first it is 0, and -1 for a
            constructed solution, whose first row comes before all training.
        rows: the evaluations.
    """

    warming_up: bool
    iteration: int = 0
    learning_rate: float = 0.0
    evaluated: int = 0
    rows: list[Row] = field(default_factory=list)


class Stopwatch:
    """The time that a run has taken, over all processes it was in."""

    def __init__(self, seconds: float = 0.0, evaluation_seconds: float = 0.0) -> None:
        self._before, self._began = seconds, time.monotonic()
        self._evaluated = evaluation_seconds
        self._evaluation_began: float | None = None

    def seconds(self) -> float:
        """In all."""
        return self._before + time.monotonic() - self._began

    def evaluation_seconds(self) -> float:
        """In evaluating and saving."""
        if self._evaluation_began is None:
            return self._evaluated
        return self._evaluated + time.monotonic() - self._evaluation_began

    def training_seconds(self) -> float:
        """Without evaluations."""
        return self.seconds() - self.evaluation_seconds()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The time in the block counts as evaluation."""
        self._evaluation_began = time.monotonic()
        try:
            yield
        finally:
            self._evaluated = self.evaluation_seconds()
            self._evaluation_began = None


class Record:
    """The files of a run in progress: written as it goes, and gone on from.

    Args:
        config: the run's.
        run: where they lie.
        data: what it is trained on.
        step: whose weights, optimizer and sums a checkpoint holds.
        state: the run's, which `restore` changes.
    """

    def __init__(
        self, config: Config, run: RunDirectory, data: Dataset, step: Step, state: State
    ) -> None:
        self.config, self.run, self.step, self.state = config, run, step, state
        self.stopwatch = Stopwatch()
        self.peak_memory = devices.PeakMemory(step.device)
        self.threads = torch.get_num_threads()
        self.devices = [devices.describe(step.device)]  # the kinds that the run was on, in order
        self.instructions = devices.instructions(step.device)
        self.data_digest, self.classes = data.digest, data.classes
        self.parameters = networks.parameter_count(step.network)
        self.events = None
        if config.logger:
            from resrepro.runs.tensorboard import Events  # an extra

            self.events = Events(run.path / "tensorboard")

    def images_per_second(self) -> float | None:
        """Training speed without evaluations; None before the first iteration."""
        images = self.state.iteration * self.config.recipe.batch_size
        return images / self.stopwatch.training_seconds() if images else None

    def write(self, status: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
        """Writes metrics.csv, the logger's curves and summary.json; returns what that says."""
        summary = self.summary(status, reason) | more
        self.run.write_results(summary, self.state.rows)
        if self.events:
            self.events.write(self.state.rows)
            if status != "running":
                self.events.close()
        return summary

    def summary(self, status: str, reason: str | None) -> dict[str, Any]:
        """What summary.json says of the run at this moment."""
        state, rows = self.state, self.state.rows
        return {
            "status": status,
            "reason": reason,
            "iteration": state.iteration,
            "iterations": self.config.recipe.iterations,
            "classes": self.classes,
            "train_images": len(self.step.batches.train[1]),
            "test_images": len(self.step.batches.test[1]),
            "final_train_error": rows[-1].train_error if rows else None,
            "final_test_error": rows[-1].test_error if rows else None,
            "best_test_error": min(row.test_error for row in rows) if rows else None,
            "clean_train_error": None,
            "parameters": self.parameters,
            "images_per_second": self.images_per_second(),
            "peak_memory_bytes": self.peak_memory.bytes(),
            "seconds": self.stopwatch.seconds(),
            "device": self.devices[-1],
            "devices": list(dict.fromkeys(self.devices)),
            "instructions": self.instructions,
            "threads": self.threads,
            "precision": self.config.precision,
            "compiled": self.config.compile,
            "deterministic": self.config.deterministic,
            "data_digest": self.data_digest,
            **provenance(),
        }

    def save(self) -> None:
        """Writes a checkpoint."""
        state = self.state
        self.run.save_checkpoint(
            {
                "data_digest": self.data_digest,
                "torch": str(torch.__version__),
                "threads": self.threads,
                "instructions": self.instructions,
                **self.step.state(),
                "warming_up": state.warming_up,
                "iteration": state.iteration,
                "learning_rate": state.learning_rate,
                "evaluated": state.evaluated,
                "rows": [list(astuple(row)) for row in state.rows],
                "seconds": self.stopwatch.seconds(),
                "evaluation_seconds": self.stopwatch.evaluation_seconds(),
                "devices": list(dict.fromkeys(self.devices)),
            },
            self.config,
        )

    def restore(self, checkpoint: dict[str, Any]) -> list[str]:
        """Puts the run where a checkpoint left it.

        Returns:
            Warnings of what is no more as it was, and changes the run's last bits.

        Raises:
            ResreproError: the data are not those it was trained on.
        """
        self.run.check_data(checkpoint["data_digest"], self.data_digest)
        self.step.load_state(checkpoint)
        state = self.state
        state.warming_up = checkpoint["warming_up"]
        state.iteration = checkpoint["iteration"]
        state.learning_rate = checkpoint["learning_rate"]
        state.evaluated = checkpoint["evaluated"]
        state.rows[:] = [Row(*values) for values in checkpoint["rows"]]
        self.stopwatch = Stopwatch(checkpoint["seconds"], checkpoint["evaluation_seconds"])
        self.devices = [*checkpoint["devices"], *self.devices]
        threads = (checkpoint["threads"], self.threads)
        return [
            f"the run goes on with {key} {now} and was trained with {then}; the last bits "
            "will differ from those of an unbroken run"
            for key, (then, now) in (
                then_and_now(checkpoint, self.step.device) | {"threads": threads}
            ).items()
            if then != now
        ]


def then_and_now(
    checkpoint: dict[str, Any], device: torch.device
) -> dict[str, tuple[object, object]]:
    """What rounds a net's numbers, where a checkpoint was saved and here, by name."""
    pairs: dict[str, tuple[object, object]] = {
        "torch": (checkpoint["torch"], str(torch.__version__)),
        "device": (checkpoint["devices"][-1], devices.describe(device)),
    }
    instructions = checkpoint.get("instructions"), devices.instructions(device)
    if all(instructions):  # of a CPU both times
        pairs["instructions"] = instructions
    return pairs
