"""What a terminal and a log show of work that goes on."""

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from resrepro.configuration.schema import Config
from resrepro.progress import Progress, console, fitting, forecast, tenths
from resrepro.studies.display import Display, counted

NEWS = Progress(20, 200, train_error=45.12, test_error=50.2, images_per_second=1234.0)


class Terminal:
    """A terminal of some size, and what was written to it."""

    def __init__(self, columns: int, lines: int) -> None:
        self.controller, self.place = pty.openpty()
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.place, termios.TIOCSWINSZ, size)
        os.set_blocking(self.controller, False)

    def read(self) -> str:
        """What was written since the last time."""
        text = b""
        while True:
            try:
                text += os.read(self.controller, 65536)
            except BlockingIOError:
                return text.decode().replace("\r\n", "\n")

    def lines(self) -> list[str]:
        """The same, as lines, each as it was drawn last; without what moves the cursor."""
        text = self.read().replace("\x1b[A", "\n")
        return [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    made: list[Terminal] = []

    @contextmanager
    def make(columns: int, lines: int = 24) -> Iterator[Terminal]:
        made.append(Terminal(columns, lines))
        with os.fdopen(made[-1].place, "w") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", file)
            patch.setattr(sys, "stdout", file)
            yield made[-1]

    yield make
    for one in made:
        os.close(one.controller)


def test_as_many_parts_as_there_is_room_for() -> None:
    assert fitting(["abc", "de", "f"], 10) == "abc, de, f"
    assert fitting(["abc", "de", "f"], 9) == "abc, de"
    assert fitting(["abc", "de"], 2) == ""


def test_a_log_has_a_line_each_tenth() -> None:
    told = tenths("plain-8-s0")
    assert told(Progress(0, 200)) is None  # nothing is known yet, and that it begins was said
    lines = [told(replace(NEWS, iteration=i)) for i in range(1, 201)]
    said = [line for line in lines if line]
    assert len(said) == 11
    assert said[1] == ("plain-8-s0: iteration 20 of 200: train 45.1%, test 50.2%, 1,234 images/s")
    assert "iteration 200 of 200" in said[-1]


def test_a_single_run_shows_where_it_goes_on(terminal: Callable[..., Any]) -> None:
    with terminal(80) as screen, console("run 3 of 24, plain-8-s0", 200) as watcher:
        assert screen.read() == ""
        watcher.progress(replace(NEWS, iteration=150))
        drawn = screen.lines()[-1]
        assert drawn.startswith("run 3 of 24, plain-8-s0:  75%|")
        assert " 150/200 " in drawn
        assert "train 45.1%" in drawn
        watcher.line("plain-8-s0 goes on")
        assert "plain-8-s0 goes on" in screen.lines()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_nothing_is_cut(columns: int, terminal: Callable[..., Any]) -> None:
    with terminal(columns) as screen, console("plain-8-s0", 20000) as watcher:
        watcher.progress(replace(NEWS, iterations=20000))
        drawn = screen.lines()[-1]
    assert len(drawn) < columns
    assert drawn.rpartition(", ")[2] in ("train 45.1%", "test 50.2%", "1,234 images/s")


@pytest.fixture
def runs(quick: Callable[..., Config]) -> list[Config]:
    return [quick(f"seed={seed}") for seed in range(8)]


@pytest.mark.parametrize(
    ("columns", "lines", "shown"), [(60, 24, 5), (120, 24, 5), (80, 8, 5), (80, 7, 3), (60, 4, 0)]
)
def test_each_run_that_goes_on_has_a_line_or_is_counted(
    columns: int, lines: int, shown: int, runs: list[Config], terminal: Callable[..., Any]
) -> None:
    with terminal(columns, lines) as screen, Display("study x", runs, runs[1:], 5) as display:
        for run in runs[1:6]:
            display.progress(run, NEWS)
        screen.read()
        display.refresh()
        drawn = screen.lines()
        assert max(map(len, drawn)) < columns
        assert sum(line.startswith("study x: ") and "1 of 8 runs" in line for line in drawn) == 1
        names = [line.split()[0] for line in drawn if line.startswith("  residual")]
        assert names == [run.name for run in runs[1 : 1 + shown]]
        assert (f"  and {5 - shown} more" in drawn) == (shown < 5)
        assert all(" 10%|" in line for line in drawn if line.startswith("  residual"))
        assert ", test 50.2%" in "".join(drawn) or not shown
        for run in runs[1:6]:
            display.progress(run, replace(NEWS, iteration=200))
            display.end(run)
        display.refresh()
        drawn = screen.lines()
        assert any("6 of 8 runs" in line for line in drawn)
        assert not any(line.startswith("  ") for line in drawn)


def test_in_a_log_a_study_tells_each_run_by_tenths(
    runs: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display("study x", runs, runs, 2) as display:
        for iteration in range(1, 201):
            display.progress(runs[0], replace(NEWS, iteration=iteration))
            display.refresh()
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 11
    assert "residual-8-s0: iteration 100 of 200: train 45.1%" in out


def test_a_reason_is_told_once_with_the_runs_that_failed_for_it(
    runs: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display("study x", runs, runs, 2) as display:
        for run in runs[:6]:
            display.fail(run, "no data to be had")
        display.fail(runs[6], "another")
    assert capsys.readouterr().out.splitlines() == [
        "residual-8-s0: no data to be had",
        "residual-8-s6: another",
        "residual-8-s1, residual-8-s2, residual-8-s3 and 2 more: the same",
    ]
    assert list(display.failures) == ["no data to be had", "another"]


def test_counted() -> None:
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def test_a_run_of_hours_is_forecast_once_from_a_few_seconds() -> None:
    told = forecast("plain-56-s0", 64_000)
    looks = [(1, 10.0), (2, 11.0), (2, 14.5), (6, 15.5), (9, 18.0), (64_000, 9e9)]
    assert [told(*look) for look in looks] == [
        *[None] * 3,
        "plain-56-s0 takes about 19:33 h at this speed; recipe.iterations=N shortens it",
        *[None] * 2,
    ]
    quick = forecast("plain-8-s0", 100)
    assert [quick(*look) for look in looks[:-1]] == [None] * 5


def test_where_no_iteration_ends_in_time_the_forecast_waits() -> None:
    told = forecast("plain-1202-s0", 10)
    assert [told(1, 0.0), told(1, 600.0)] == [None, None]
    line = told(2, 1000.0)
    assert line is not None
    assert "about 2:13 h" in line
