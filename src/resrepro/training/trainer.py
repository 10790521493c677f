"""A run's life: a configuration becomes a run directory (paper, section 4.2).

Here it is opened, gone on with and ended, however it ends; what happens in between is the
training loop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from resrepro.configuration.schema import Config
from resrepro.data import load
from resrepro.errors import Diverged, Interrupted, ResreproError, one_line
from resrepro.files import lock_option
from resrepro.progress import Watcher
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.training import devices
from resrepro.training.loop import Training


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
    with run.opened(config), _explained():
        if option := lock_option(run.path):
            watcher.line(
                f"warning: {run.path} is mounted with {option}: other hosts do not see its lock; "
                "start its experiment on one host at a time"
            )
        data, (summary, _) = None, _intact_results(run)
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
                "activation_checkpointing=true or a smaller recipe.batch_size, model.width or "
                "depth, and on a GPU with data.resident=host"
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


def _intact_results(run: RunDirectory) -> tuple[dict[str, Any] | None, list[Row]]:
    """Summary and rows, if both files are what was written; else both are made anew."""
    try:
        return run.results()
    except ResreproError:
        return None, []


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


def _write_ending(run: RunDirectory, training: Training | None, error: BaseException) -> None:
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
            training.record.write(status, reason)
        else:
            summary, rows = _intact_results(run)
            ending = {"status": status, "reason": reason}
            run.write_summary((summary or {"iteration": 0}) | ending, rows)
        run.log(f"{status}: {reason}")
        if training is not None and isinstance(error, Interrupted):
            training.watcher.progress(training.progress())
    except Diverged as diverged:  # as it turned out when it was to be saved
        _write_ending(run, training, diverged)
    except OSError:
        pass  # what ended the run is told; that it could not be written down too follows from it
