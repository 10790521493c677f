"""A table of runs: what state each is in, and why."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import TextWrapper

from tabulate import tabulate

from resrepro.errors import ResreproError, one_line
from resrepro.progress import duration
from resrepro.runs.run_directory import RunDirectory, find_experiments, find_runs, too_deep

HEADERS = ("run", "state", "iteration", "train %", "test %", "images/s", "time", "note")
LEFT_OUT = ("images/s", "time", "iteration")  # where a table is too wide, in this order
RIGHT = ("iteration", "train %", "test %", "images/s", "time")
MANY = 4  # names; of more only the first are told
NOTE_WIDTH = 100  # characters at most; longer ones go on below


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        path: the run's directory.
        state: as in summary.json, or waiting, killed or damaged.
        cells: a row of the table, and its note.
    """

    path: Path
    state: str
    cells: tuple[str, ...]


def standing(run: RunDirectory) -> Standing:
    """Where a run stands; a damaged one is a state, not an error."""
    if not run.exists():
        return Standing(run.path, "waiting", (run.name, "waiting", "0", "", "", "", "", ""))
    try:
        config, summary = run.config(), run.summary()
        run.metrics()
    except ResreproError as error:
        return Standing(
            run.path, "damaged", (run.name, "damaged", "", "", "", "", "", one_line(error))
        )
    if summary is None:
        state = "running" if run.is_locked() else "waiting"
        return Standing(run.path, state, (run.name, state, "0", "", "", "", "", ""))
    state, note = summary["status"], summary.get("reason") or ""
    if state == "running" and run.is_locked() is False:
        state, note = "killed", "its process is gone; the same command goes on"
    speed = summary.get("images_per_second")
    time = ""
    if state == "complete":
        time = f"took {duration(summary['seconds'])}"
    elif speed and state != "diverged":
        rest = (config.recipe.iterations - summary["iteration"]) * config.recipe.batch_size
        time = f"{duration(rest / speed)} left"
    cells = (
        run.name,
        state,
        f"{summary.get('iteration', 0):,} / {config.recipe.iterations:,}",
        percent(summary.get("final_train_error")),
        percent(summary.get("final_test_error")),
        f"{speed:,.0f}" if speed else "",
        time,
        note,
    )
    return Standing(run.path, state, cells)


def percent(error: float | None) -> str:
    """An error with two decimals, or nothing."""
    return "" if error is None else f"{error:.2f}"


def run_table(standings: Iterable[Standing], columns: int | None = None) -> str:
    """The standings as a table, and below it why those that have come to grief have.

    Args:
        standings: of which runs; those of several folders are told apart by their paths.
        columns: that it is to fit; None: the terminal's, or any number where there is none.
    """
    standings = list(standings)
    columns = shutil.get_terminal_size((0, 0)).columns if columns is None else columns
    names = _names([standing.path for standing in standings])
    table = {"run": names} | {
        header: [standing.cells[i] for standing in standings]
        for i, header in enumerate(HEADERS[1:-1], 1)
    }
    left_out = []
    for header in LEFT_OUT:
        if 0 < columns < _width(_drawn(table)):
            del table[header]
            left_out.append(header)
    parts = [_drawn(table, columns)]
    if left_out:
        parts.append(f"({columns} columns are too few to show {', '.join(left_out)})")
    if notes := _notes(names, [standing.cells[-1] for standing in standings], columns):
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


def status_report(outputs: str, experiment: str | None) -> str:
    """The table of one experiment, or of all there are.

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
        table = run_table(map(standing, find_runs(outputs, name)))
        parts.append(f"{Path(outputs) / name}\n\n{table}")
    return "\n\n".join(parts)
