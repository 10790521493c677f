"""`resrepro train`: one run, or a sweep through whichever Hydra launcher is chosen."""

import os
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from resrepro import extension
from resrepro.configuration import composition
from resrepro.configuration.schema import Config, from_mapping
from resrepro.errors import Interrupted, ResreproError, one_line
from resrepro.interruption import watched
from resrepro.progress import console
from resrepro.runs.run_directory import RunDirectory
from resrepro.runs.status import run_status, run_table
from resrepro.studies import slurm


def train_one(config: Config, place: str = "") -> None:
    """Trains a run, shown on the terminal.

    Args:
        config: the run's.
        place: which of a sweep's runs it is, in words.

    Raises:
        ResreproError: it failed.
        Interrupted: it was stopped, and can go on.
    """
    from resrepro.training.trainer import train

    shown = f"{place}, {config.name}" if place else config.name
    with watched(), console(shown, config.recipe.iterations) as watcher:
        train(config, watcher)


def train_sweep(words: list[str]) -> int:
    """Trains every run of a sweep and prints a table of them; a failed one harms no other.

    Returns:
        The exit status: 0 if all are complete, 1 if not, 128 + n if signal n stopped the sweep.

    Raises:
        ConfigError: a run's configuration is wrong, or two would share a directory; none started.
    """
    args = composition.parse(words)
    runs = composition.expand("train", [args.overrides], args.config_dir)
    extensions, folder, stopped = extension.loaded(), Path.cwd(), 0
    reported: set[str] = set()

    def job(composed: DictConfig) -> None:
        # In a launcher's process neither is so yet.
        os.chdir(folder)
        extension.load_extensions(extensions)
        place = f"run {HydraConfig.get().job.num + 1} of {len(runs)}"
        with slurm.queued_again():
            train_job(from_mapping(composed), place, reported)

    try:
        composition.run_sweep(words, job)
    except (Interrupted, KeyboardInterrupt) as stop:
        stopped = stop.status if isinstance(stop, Interrupted) else 130
    except (ResreproError, OSError):  # outputs that cannot be written, say
        raise
    except Exception as error:  # whatever an engine raises that cannot be had, or loses a job
        print(f"resrepro train: the launcher: {one_line(error)}", file=sys.stderr, flush=True)
    statuses = [run_status(RunDirectory(config.directory)) for config in runs]
    print(f"\n{run_table(statuses)}")
    incomplete = sum(s.state != "complete" for s in statuses)
    if stopped:
        print("resrepro train: stopped; the same command goes on from here", file=sys.stderr)
    elif incomplete:
        print(f"resrepro train: {incomplete} of {len(runs)} runs are not complete", file=sys.stderr)
    return stopped or int(incomplete > 0)


def train_job(config: Config, place: str, reported: set[str]) -> None:
    """One job of a sweep. Says why it failed, each reason once, and lets the others go on."""
    try:
        train_one(config, place)
    except Exception as error:  # whatever it is, the runs after this one go on
        reason = one_line(error)
        if reason not in reported:
            reported.add(reason)
            print(f"{config.name}: {reason}", file=sys.stderr, flush=True)
