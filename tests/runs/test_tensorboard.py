"""logger=tensorboard: the rows of metrics.csv, each once, whatever became of the run before."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resrepro.configuration import schema
from resrepro.configuration.composition import expand
from resrepro.configuration.schema import Config, config_hash
from resrepro.errors import ConfigError, Interrupted
from resrepro.progress import Progress, Watcher
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.training.trainer import train

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from resrepro.runs.tensorboard import TAGS, Events

Point = tuple[str, int, float]


def points(folder: Path) -> list[Point]:
    """All there are in the folder's files, of whoever reads them."""
    return [
        (value.tag, event.step, value.tensor.float_val[0])
        for file in folder.glob("events*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]


def expected(rows: list[Row]) -> list[Point]:
    return [
        (tag, row.iteration, pytest.approx(getattr(row, column), rel=1e-6))
        for row in rows
        for tag, column in TAGS.items()
    ]


def test_a_run_stopped_and_gone_on_with_has_each_point_once(
    quick: Callable[..., Config], tmp_path: Path
) -> None:
    words = ("model.width=4", "recipe.iterations=8", "evaluate_every=2", "checkpoint_seconds=1e9")
    config, without = quick(*words, "logger=tensorboard"), quick(*words, "experiment=without")
    folder = config.directory / "tensorboard"

    def stop(now: Progress) -> None:
        if now.iteration == 4:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        train(config, Watcher(progress=stop))
    run = RunDirectory(config.directory)
    assert points(folder) == expected(run.metrics())
    assert run.metrics()[-1].iteration == 4
    # As if it had been killed after two more rows, of which no checkpoint knows.
    killed = Events(tmp_path / "killed")
    killed.write([*run.metrics(), *(replace(run.metrics()[-1], iteration=i) for i in (6, 8))])
    (left,) = (tmp_path / "killed").iterdir()
    shutil.copy(left, folder)
    train(config, Watcher())
    assert points(folder) == expected(run.metrics())
    train(without, Watcher())
    assert [replace(row, seconds=0) for row in run.metrics()] == [
        replace(row, seconds=0) for row in RunDirectory(without.directory).metrics()
    ]
    assert config_hash(config) == config_hash(without)


def test_rows_that_are_taken_back_are_gone(rows: Callable[..., list[Row]], tmp_path: Path) -> None:
    events = Events(tmp_path)
    for made in (rows(), rows()[:2], []):
        events.write(made)
        assert points(tmp_path) == expected(made)
    events.close()


def test_without_the_extra_a_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'resrepro\[tensorboard\]'"):
        expand("train", [["data=digits", "logger=tensorboard"]], None)
    with pytest.raises(ConfigError, match=r"logger=wandb: must be null or tensorboard"):
        expand("train", [["data=digits", "logger=wandb"]], None)
