import os
import re
import select
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from survival import COMMAND

from resrepro.configuration.schema import Config
from resrepro.errors import ResreproError
from resrepro.progress import Watcher
from resrepro.runs import status
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.runs.status import HEADERS, run_status, run_table, several, status_report
from resrepro.training import trainer

Make = Callable[..., RunDirectory]


def cells(run: RunDirectory) -> dict[str, str]:
    return dict(zip(HEADERS, run_status(run).cells, strict=True))


@pytest.fixture
def config(quick: Callable[..., Config]) -> Config:
    return quick("recipe.iterations=1000", "recipe.batch_size=100")


def test_a_complete_run(config: Config, made_up_run: Make, rows: Any) -> None:
    run = made_up_run(config, rows(train=1.234, test=5.678, last=1000))
    assert run_status(run).state == "complete"
    assert cells(run) == {
        "run": "residual-8-s0",
        "state": "complete",
        "iteration": "1,000 / 1,000",
        "train %": "1.23",
        "test %": "5.68",
        "images/s": "1,000",
        "time": "took 1:00 min",
        "host": "",
        "note": "",
    }


def test_an_interrupted_run_has_its_time_left_and_its_reason(
    config: Config, made_up_run: Make, rows: Any
) -> None:
    run = made_up_run(config, rows(last=100), "interrupted")
    seen = cells(run)
    assert (seen["state"], seen["iteration"]) == ("interrupted", "100 / 1,000")
    assert seen["images/s"] == "2,000"
    assert seen["time"] == "45 s left"  # 900 iterations of 100 images at 2,000 a second
    assert seen["note"] == "was made interrupted"


def test_the_time_left_is_by_the_speed_of_late(
    config: Config, made_up_run: Make, rows: Any
) -> None:
    """Whatever a run took before it came to this machine, and once in a pause."""
    later = [replace(row, seconds=1e5 + row.seconds) for row in rows(last=600, count=30)]
    later[-3:] = [replace(row, seconds=row.seconds + 1e4) for row in later[-3:]]
    seen = cells(made_up_run(config, [*rows(last=10, count=1), *later[1:]], "interrupted"))
    assert (seen["images/s"], seen["time"]) == ("2,000", "20 s left")


def test_one_row_tells_no_speed_of_late(config: Config, made_up_run: Make, rows: Any) -> None:
    seen = cells(made_up_run(config, rows(last=100, count=1), "interrupted"))
    assert (seen["images/s"], seen["time"]) == ("1,000", "1:30 min left")


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
    assert run_status(run).state == "killed"
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
    assert run_status(run).state == "waiting"
    with RunDirectory(run.path).locked():
        assert run_status(run).state == "running"


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
        "residual-8-s1",
        "residual-14-s0",
    ]
    assert both.index("outputs/one\n") < both.index("outputs/two\n")
    assert "residual-8-s0" not in status_report(outputs, "two")
    with pytest.raises(ResreproError, match=r"no runs in .*three"):
        status_report(outputs, "three")


def test_a_run_that_goes_on_is_shown_with_its_host(
    quick: Callable[..., Config], made_up_run: Make, rows: Any
) -> None:
    runs = [made_up_run(quick(f"seed={seed}"), rows(), "running") for seed in (0, 1)]
    other = made_up_run(quick("seed=2"), rows())
    with runs[0].locked():
        (runs[0].path / ".holder").write_text("process 7 on a-host")
        assert cells(runs[0])["host"] == "a-host"
        (runs[1].path / ".holder").write_text("process 8 on another-host")
        assert (cells(runs[1])["state"], cells(runs[1])["host"]) == ("killed", "")
        assert "a-host" in run_table(map(run_status, [*runs, other]), 0)
    assert "host" not in run_table([run_status(other)], 0)


def test_watching_shows_what_goes_on_first_and_fits_the_screen(
    quick: Callable[..., Config], made_up_run: Make, rows: Any, tmp_path: Path
) -> None:
    for seed, state in enumerate(["complete", "complete", "interrupted", "failed"]):
        made_up_run(quick(f"seed={seed}"), rows(), state)
    text = status_report(str(tmp_path / "outputs"), None, is_watched=True)
    assert "outputs/digits: 2 complete, 1 interrupted, 1 failed\n" in text
    assert re.findall(r"^residual\S+  (?=\w)", text, re.MULTILINE) == [
        f"residual-8-s{seed}  " for seed in (3, 2, 0, 1)
    ]
    for height in (8, 12, 40):
        drawn = status.screen(text, height)
        assert drawn.count("\n") < height
        assert ("more lines" in drawn) == (height < 15)


@pytest.fixture
def terminal(tmp_path: Path) -> Any:
    """Starts `resrepro status --watch` on a terminal of its own."""
    import pty

    mine, its = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "status", "--watch"], cwd=tmp_path, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    yield process, mine
    process.kill()
    process.wait()
    os.close(mine)


def test_watching_waits_for_runs_and_ends_quietly_by_ctrl_c(
    quick: Callable[..., Config], made_up_run: Make, rows: Any, terminal: Any
) -> None:
    process, mine = terminal
    seen = read_until(mine, "there are no runs")
    made_up_run(quick(), rows())
    seen = read_until(mine, "residual-8-s0")
    assert seen.count("\x1b[H") >= 1
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def read_until(terminal: int, word: str) -> str:
    seen = ""
    while word not in seen:
        assert select.select([terminal], [], [], 60)[0], seen
        seen += os.read(terminal, 1 << 16).decode()
    return seen


def test_watching_without_a_terminal_prints_once(
    config: Config, made_up_run: Make, rows: Any, resrepro_here: Any
) -> None:
    made_up_run(config, rows())
    watched, once = resrepro_here("status", "--watch"), resrepro_here("status")
    assert watched == once
    assert "\x1b" not in watched.stdout


def test_the_last_row_is_the_one_shown(config: Config, made_up_run: Make, rows: Any) -> None:
    last = Row(1000, 9.0, 0.02, 0.1, 77.0, 0.1, 66.0, 1.0)
    seen = cells(made_up_run(config, [*rows(last=500), last]))
    assert (seen["train %"], seen["test %"]) == ("77.00", "66.00")


@pytest.fixture
def statuses(quick: Callable[..., Config], made_up_run: Make, rows: Any) -> list[Any]:
    """Of runs of every sort, with long names."""
    made = [
        made_up_run(quick("depth=1202", "tag=lr0.05", f"seed={seed}"), rows(), state)
        for seed, state in enumerate(["complete", "interrupted", "failed"])
    ]
    return [run_status(run) for run in made]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_table_fits_the_terminal(columns: int, statuses: list[Any]) -> None:
    text = run_table(statuses, columns)
    assert max(map(len, text.splitlines())) <= columns
    for one in statuses:
        assert one.cells[0] in text
        assert one.state in text
    has_all = all(header in text.splitlines()[0] for header in HEADERS[:-2])
    assert has_all == (columns == 120)
    assert (f"({columns} columns are too few to show images/s" in text) == (columns < 120)


def test_where_there_is_no_terminal_a_table_has_all_columns(
    statuses: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "too few" not in run_table(statuses)
    monkeypatch.setenv("COLUMNS", "80")
    assert "(80 columns are too few to show images/s" in run_table(statuses)


def test_a_name_longer_than_the_terminal_goes_on_below(statuses: list[Any]) -> None:
    head, _, _ = run_table(statuses, 50).partition("\n\n")
    _, dashes, *rows = head.splitlines()
    assert max(map(len, rows)) <= 50
    column = dashes.index(" ")
    names = "".join(row[:column].strip() for row in rows)
    assert names == "".join(one.cells[0] for one in statuses)


def test_a_reason_is_told_once_with_the_runs_it_is_about(
    quick: Callable[..., Config], made_up_run: Make
) -> None:
    reason = "data.root=lost: there is no such folder, and this goes on at some length " * 2
    made = [
        made_up_run(quick(f"seed={seed}"), [], "failed", reason=reason if seed else "another")
        for seed in range(25)
    ]
    text = run_table([run_status(run) for run in made], 80)
    assert " ".join(text.split()).count("there is no such folder") == 2  # of one reason
    notes = " ".join(text.split("\n\n")[-1].split())
    assert notes.startswith("residual-8-s0: another residual-8-s1, residual-8-s2, ")
    assert "residual-8-s3 and 21 more: data.root=lost" in notes
    assert len(text.splitlines()) == 2 + 25 + 1 + 1 + 3


def test_names_in_a_row() -> None:
    assert several(["a"]) == "a"
    assert several(list("abcd")) == "a, b, c, d"
    assert several(list("abcdef")) == "a, b, c and 3 more"


def test_runs_of_several_experiments_are_told_apart(
    quick: Callable[..., Config], made_up_run: Make, rows: Any, tmp_path: Path
) -> None:
    places = [("a", "one"), ("a", "two"), ("b", "one")]
    made = [
        made_up_run(replace(quick(), outputs=f"{tmp_path}/{o}", experiment=e), rows())
        for o, e in places
    ]
    statuses = [run_status(run) for run in made]
    names = [line.split()[0] for line in run_table(statuses, 0).splitlines()[2:]]
    assert names == [f"{o}/{e}/residual-8-s0" for o, e in places]
    names = [line.split()[0] for line in run_table(statuses[:2], 0).splitlines()[2:]]
    assert names == ["one/residual-8-s0", "two/residual-8-s0"]


def test_a_folder_too_deep_is_told_from_an_empty_one(
    quick: Callable[..., Config], made_up_run: Make, rows: Any, tmp_path: Path, resrepro_here: Any
) -> None:
    run = made_up_run(quick("experiment=one"), rows())
    outputs = tmp_path / "outputs"
    advice = f"there are no runs in .*; did you mean outputs={outputs} experiment=one\\?$"
    for place in (outputs / "one", run.path):
        with pytest.raises(ResreproError, match=advice):
            status_report(str(place), None)
    done = resrepro_here("status", "outputs=outputs/one")
    assert done.status == 1
    assert done.error.endswith("; did you mean outputs=outputs experiment=one?")
    with pytest.raises(ResreproError, match="reproduce study=digits"):
        status_report(str(outputs / "one/figures"), None)
