"""A table of runs: what state each is in, and why."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from resrepro.errors import ResreproError
from resrepro.progress import duration
from resrepro.runs.run_directory import RunDirectory, find_experiments, find_runs, one_line

HEADERS = ("run", "state", "iteration", "train %", "test %", "images/s", "time", "note")
NOTE_WIDTH = 60  # characters; longer ones go on below


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        state: as in summary.json, or waiting, killed or damaged.
        cells: a row of the table.
    """

    state: str
    cells: tuple[str, ...]


def standing(run: RunDirectory) -> Standing:
    """Where a run stands; a damaged one is a state, not an error."""
    if not run.exists():
        return Standing("waiting", (run.name, "waiting", "0", "", "", "", "", ""))
    try:
        config, summary = run.config(), run.summary()
        run.metrics()
    except ResreproError as error:
        return Standing("damaged", (run.name, "damaged", "", "", "", "", "", one_line(error)))
    if summary is None:
        state = "running" if run.is_locked() else "waiting"
        return Standing(state, (run.name, state, "0", "", "", "", "", ""))
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
    return Standing(state, cells)


def percent(error: float | None) -> str:
    """An error with two decimals, or nothing."""
    return "" if error is None else f"{error:.2f}"


def run_table(standings: Iterable[Standing]) -> str:
    """The standings as text."""
    rows = [standing.cells for standing in standings]
    align = ("left", "left", *["right"] * 5, "left")
    widths = (*[None] * 7, NOTE_WIDTH)
    return tabulate(
        rows, HEADERS, "simple", colalign=align, disable_numparse=True, maxcolwidths=widths
    )


def status_report(outputs: str, experiment: str | None) -> str:
    """The table of one experiment, or of all there are.

    Raises:
        ResreproError: there are no runs.
    """
    experiments = [experiment] if experiment else find_experiments(outputs)
    if not experiments:
        raise ResreproError(
            f"there are no runs in {Path(outputs).absolute()}; `resrepro reproduce study=digits` "
            "makes some, outputs=DIR looks elsewhere"
        )
    parts = []
    for name in experiments:
        table = run_table(standing(run) for run in find_runs(outputs, name))
        parts.append(f"{Path(outputs) / name}\n\n{table}")
    return "\n\n".join(parts)
