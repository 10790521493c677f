"""A table of runs: what state each is in, and why."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from textwrap import TextWrapper

from tabulate import tabulate

from resrepro.errors import ResreproError, one_line
from resrepro.progress import duration
from resrepro.runs.run_directory import Row, RunDirectory, find_experiments, find_runs, too_deep

HEADERS = ("run", "state", "iteration", "train %", "test %", "images/s", "time", "host", "note")
LEFT_OUT = ("images/s", "host", "time", "iteration")  # where a table is too wide, in this order
RIGHT = ("iteration", "train %", "test %", "images/s", "time")
MANY = 4  # names; of more only the first are told
LATE = 5  # rows whose median says how long one takes now
NOTE_WIDTH = 100  # characters at most; longer ones go on below
WATCH_SECONDS = 2.0  # between two looks
# What is watched comes first, what needs no more looking at last.
WATCH_ORDER = ("running", "failed", "damaged", "diverged", "killed", "interrupted", "waiting")


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, for the table of runs.

    Attributes:
        path: the run's directory.
        state: as in summary.json, or waiting, killed or damaged.
        iteration: that the run has come to, as far as the files tell.
        cells: a row of the table, and its note.
    """

    path: Path
    state: str
    iteration: int
    cells: tuple[str, ...]

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train: the run is complete, or its loss diverged."""
        return self.state in ("complete", "diverged")


def run_status(run: RunDirectory) -> RunStatus:
    """What the files say of a run; a damaged one is a state, not an error."""
    if not run.exists():
        return _without_results(run, "waiting")
    try:
        config, (summary, rows) = run.config(), run.results()
    except ResreproError as error:
        return _without_results(run, "damaged", one_line(error))
    if summary is None:
        return _without_results(run, "running" if run.is_locked() else "waiting")
    state, note = summary["status"], summary.get("reason") or ""
    if state == "running" and run.is_locked() is False:
        state, note = "killed", "its process is gone; the same command goes on"
    speed, iteration = summary.get("images_per_second"), summary.get("iteration", 0)
    left = ""
    if state == "complete":
        left = f"took {duration(summary['seconds'])}"
    elif state != "diverged":
        speed = speed_of_late(rows, config.recipe.batch_size) or speed
        rest = (config.recipe.iterations - iteration) * config.recipe.batch_size
        left = f"{duration(rest / speed)} left" if speed else ""
    cells = (
        run.name,
        state,
        f"{iteration:,} / {config.recipe.iterations:,}",
        percent(summary.get("final_train_error")),
        percent(summary.get("final_test_error")),
        f"{speed:,.0f}" if speed else "",
        left,
        run.host() if state == "running" else "",
        note,
    )
    return RunStatus(run.path, state, iteration, cells)


def speed_of_late(rows: list[Row], batch_size: int) -> float | None:
    """Images a second by the last rows, evaluations included; None if there are too few of them.

    The mean over a whole run would still count hours on a slower machine, or beside other work.
    """
    paces = [
        (row.seconds - before.seconds) / (row.iteration - before.iteration)
        for before, row in pairwise(rows[-LATE - 1 :])
    ]
    pace = median(paces) if paces else 0.0
    return batch_size / pace if pace > 0 else None


def _without_results(run: RunDirectory, state: str, note: str = "") -> RunStatus:
    host = run.host() if state == "running" else ""
    iteration = "" if state == "damaged" else "0"
    return RunStatus(run.path, state, 0, (run.name, state, iteration, "", "", "", "", host, note))


def percent(error: float | None) -> str:
    """An error with two decimals, or nothing."""
    return "" if error is None else f"{error:.2f}"


def run_table(statuses: Iterable[RunStatus], columns: int | None = None) -> str:
    """Runs as a table, and below it why those that failed have.

    Args:
        statuses: of which runs; those of several folders are told apart by their paths.
        columns: that it is to fit; None: the terminal's, or any number where there is none.
    """
    statuses = list(statuses)
    columns = shutil.get_terminal_size((0, 0)).columns if columns is None else columns
    names = _names([status.path for status in statuses])
    table = {"run": names} | {
        header: [status.cells[i] for status in statuses]
        for i, header in enumerate(HEADERS[1:-1], 1)
    }
    if not any(table["host"]):  # nothing goes on
        del table["host"]
    left_out = []
    for header in LEFT_OUT:
        if header in table and 0 < columns < _width(_drawn(table)):
            del table[header]
            left_out.append(header)
    parts = [_drawn(table, columns)]
    if left_out:
        parts.append(f"({columns} columns are too few to show {', '.join(left_out)})")
    if notes := _notes(names, [status.cells[-1] for status in statuses], columns):
        parts.append(notes)
    return "\n\n".join(parts)


def _names(paths: list[Path]) -> list[str]:
    folders = {path.parent.absolute() for path in paths}
    if len(folders) < 2:
        return [path.name for path in paths]
    common = os.path.commonpath(folders)
    return [os.path.relpath(path.absolute(), common) for path in paths]


def _drawn(table: dict[str, list[str]], columns: int = 0) -> str:
    align = ["right" if header in RIGHT else "left" for header in table]
    text = tabulate(table, "keys", "simple", colalign=align, disable_numparse=True)
    too_much = _width(text) - columns
    if columns == 0 or too_much <= 0:
        return text
    longest = max(len(name) for name in table["run"])
    wrapped = [max(8, longest - too_much), *[None] * (len(table) - 1)]
    return tabulate(
        table, "keys", "simple", colalign=align, disable_numparse=True, maxcolwidths=wrapped
    )


def _width(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def _notes(names: list[str], notes: list[str], columns: int) -> str:
    """Each note once, with the runs that it is about."""
    about: dict[str, list[str]] = {}
    for name, note in zip(names, notes, strict=True):
        if note:
            about.setdefault(note, []).append(name)
    wrapper = TextWrapper(
        min(columns or NOTE_WIDTH, NOTE_WIDTH),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrapper.fill(f"{several(of)}: {note}") for note, of in about.items())


def several(names: list[str]) -> str:
    """Names in a row, of many the first and how many more there are."""
    if len(names) <= MANY:
        return ", ".join(names)
    return f"{', '.join(names[: MANY - 1])} and {len(names) - MANY + 1} more"


def status_report(outputs: str, experiment: str | None, is_watched: bool = False) -> str:
    """The table of one experiment, or of all there are.

    Args:
        outputs: the folder of experiments.
        experiment: its name; None for all.
        is_watched: whether the runs that go on come first, under how many are in which state.

    Raises:
        ResreproError: there are no runs.
    """
    experiments = [experiment] if experiment else find_experiments(outputs)
    if not experiments:
        raise ResreproError(
            f"there are no runs in {Path(outputs).absolute()}"
            + (
                too_deep(outputs)
                or "; `resrepro reproduce study=digits` makes some, outputs=DIR looks elsewhere"
            )
        )
    parts = []
    for name in experiments:
        statuses = [run_status(run) for run in find_runs(outputs, name)]
        title = str(Path(outputs) / name)
        if is_watched:
            counts = Counter(status.state for status in statuses)
            title += ": " + ", ".join(f"{count} {state}" for state, count in counts.most_common())
            statuses.sort(key=_watched_place)
        parts.append(f"{title}\n\n{run_table(statuses)}")
    return "\n\n".join(parts)


def _watched_place(status: RunStatus) -> int:
    return (*WATCH_ORDER, status.state).index(status.state)


def watch(outputs: str, experiment: str | None) -> None:
    """Draws the table in place again and again, until Ctrl-C; once where there is no terminal.

    Raises:
        ResreproError: there are no runs, and no terminal to wait for them on.
    """
    if not sys.stdout.isatty():
        print(status_report(outputs, experiment))
        return
    print("\x1b[2J", end="")  # an empty screen
    while True:
        try:
            text = status_report(outputs, experiment, is_watched=True)
        except ResreproError as error:  # none yet
            text = one_line(error)
        print(screen(text, shutil.get_terminal_size().lines), end="", flush=True)
        time.sleep(WATCH_SECONDS)


def screen(text: str, height: int) -> str:
    """What draws a text from the top left corner over what was there, cut to the height."""
    lines = [*text.splitlines(), "", f"{time.strftime('%H:%M:%S')}  Ctrl-C ends this, not the runs"]
    if len(lines) > height - 1:
        lines[height - 4 : -2] = [f"… {len(lines) - height + 2} more lines"]
    return "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"
