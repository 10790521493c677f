import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resrepro.configuration.schema import Config
from resrepro.errors import ResreproError
from resrepro.progress import Watcher
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.runs.status import HEADERS, standing, status_report
from resrepro.training import trainer

Make = Callable[..., RunDirectory]


def cells(run: RunDirectory) -> dict[str, str]:
    return dict(zip(HEADERS, standing(run).cells, strict=True))


@pytest.fixture
def config(quick: Callable[..., Config]) -> Config:
    return quick("recipe.iterations=1000", "recipe.batch_size=100")


def test_a_complete_run(config: Config, made_up_run: Make, rows: Any) -> None:
    run = made_up_run(config, rows(train=1.234, test=5.678, last=1000))
    assert standing(run).state == "complete"
    assert cells(run) == {
        "run": "residual-8-s0",
        "state": "complete",
        "iteration": "1,000 / 1,000",
        "train %": "1.23",
        "test %": "5.68",
        "images/s": "1,000",
        "time": "took 1:00 min",
        "note": "",
    }


def test_an_interrupted_run_has_its_time_left_and_its_reason(
    config: Config, made_up_run: Make, rows: Any
) -> None:
    run = made_up_run(config, rows(last=100), "interrupted")
    seen = cells(run)
    assert (seen["state"], seen["iteration"]) == ("interrupted", "100 / 1,000")
    assert seen["time"] == "1:30 min left"  # 900 iterations of 100 images at 1,000 a second
    assert seen["note"] == "was made interrupted"


@pytest.mark.parametrize("state", ["failed", "diverged"])
def test_a_run_that_came_to_grief_says_why(
    state: str, config: Config, made_up_run: Make, rows: Any
) -> None:
    seen = cells(made_up_run(config, rows(last=100), state, reason="for a reason"))
    assert (seen["state"], seen["note"]) == (state, "for a reason")


def test_a_diverged_run_has_no_time_left(config: Config, made_up_run: Make, rows: Any) -> None:
    assert cells(made_up_run(config, rows(last=100), "diverged"))["time"] == ""


def test_a_running_run_is_one_whose_process_lives(
    config: Config, made_up_run: Make, rows: Any
) -> None:
    run = made_up_run(config, rows(last=100), "running")
    with RunDirectory(run.path).locked():
        assert cells(run)["state"] == "running"
        assert cells(run)["note"] == ""
    assert standing(run).state == "killed"
    assert "the same command goes on" in cells(run)["note"]


def test_a_run_without_any_row(config: Config, made_up_run: Make) -> None:
    run = made_up_run(config, [], "interrupted", images_per_second=None)
    seen = cells(run)
    assert (seen["state"], seen["iteration"]) == ("interrupted", "0 / 1,000")
    assert (seen["train %"], seen["test %"], seen["images/s"], seen["time"]) == ("", "", "", "")


def test_a_run_that_has_not_begun_waits(config: Config) -> None:
    seen = cells(RunDirectory(config.directory))
    assert (seen["run"], seen["state"], seen["note"]) == ("residual-8-s0", "waiting", "")


def test_a_run_that_has_only_a_configuration_waits(config: Config) -> None:
    run = RunDirectory(config.directory)
    run.open(config)
    assert standing(run).state == "waiting"
    with RunDirectory(run.path).locked():
        assert standing(run).state == "running"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "summary.json"])
def test_a_damaged_run_is_shown_with_its_file(
    name: str, config: Config, made_up_run: Make, rows: Any
) -> None:
    run = made_up_run(config, rows())
    (run.path / name).write_text("{")
    seen = cells(RunDirectory(run.path))
    assert (seen["run"], seen["state"]) == ("residual-8-s0", "damaged")
    assert name in seen["note"]
    assert "\n" not in seen["note"]


def test_a_run_that_failed_before_it_began(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ResreproError("no data to be had")

    monkeypatch.setattr(trainer, "load", fail)
    with pytest.raises(ResreproError, match="no data"):
        trainer.train(config, Watcher())
    seen = cells(RunDirectory(config.directory))
    assert (seen["state"], seen["note"]) == ("failed", "no data to be had")


def test_a_report_has_every_experiment_or_the_one_asked_for(
    quick: Callable[..., Config], made_up_run: Make, rows: Any, tmp_path: Path
) -> None:
    for words in (["experiment=one"], ["experiment=two", "seed=1"], ["experiment=two", "depth=14"]):
        made_up_run(quick(*words), rows())
    outputs = str(tmp_path / "outputs")
    both = status_report(outputs, None)
    assert re.findall(r"^(?:plain|residual)\S+", both, re.MULTILINE) == [
        "residual-8-s0",
        "residual-14-s0",
        "residual-8-s1",
    ]
    assert both.index("outputs/one\n") < both.index("outputs/two\n")
    assert "residual-8-s0" not in status_report(outputs, "two")
    with pytest.raises(ResreproError, match=r"no runs in .*three"):
        status_report(outputs, "three")


def test_the_last_row_is_the_one_shown(config: Config, made_up_run: Make, rows: Any) -> None:
    last = Row(1000, 9.0, 0.02, 0.1, 77.0, 0.1, 66.0, 1.0)
    seen = cells(made_up_run(config, [*rows(last=500), last]))
    assert (seen["train %"], seen["test %"]) == ("77.00", "66.00")
