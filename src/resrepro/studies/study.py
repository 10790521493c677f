"""A study: trains its runs, shared with whoever else trains them, and constructs solutions."""

import time
from pathlib import Path

from resrepro import interruption
from resrepro.configuration.schema import Config, Data
from resrepro.data import load
from resrepro.errors import ResreproError
from resrepro.runs.run_directory import RunDirectory, plan_seeds
from resrepro.runs.status import run_status, run_table, several
from resrepro.studies import processes
from resrepro.studies.constructed import constructed_solutions
from resrepro.studies.display import counted
from resrepro.studies.plan import Plan, cost
from resrepro.studies.processes import Train

LOOK_SECONDS = 1.0  # between two looks at a run that another process trains


def run_study(plan: Plan, train: Train | None = None) -> tuple[int, int]:
    """Trains all runs that are not complete, longest first, and prints a table of all.

    Several processes may do so at once, on any machines that share the outputs: each takes what
    no other holds.

    Args:
        plan: the study's.
        train: how runs are trained; None: by processes on this machine.

    Returns:
        How many runs are not complete, and how many of those others go on with.

    Raises:
        Interrupted: a signal came; every run is saved, and the same call goes on.
    """
    if plan.seeds is not None:
        plan_seeds(Path(plan.outputs).expanduser() / plan.experiment, plan.seeds)
    runs = plan.runs
    failures = _finish(f"study {plan.name}", runs, plan, train)
    if "constructed" in plan.artefacts and not _elsewhere(runs, plan, train):
        made = constructed_solutions(runs)
        failures += _finish("constructed solutions", made, plan, train)
        runs = runs + made
    statuses = [run_status(RunDirectory(run.directory)) for run in runs]
    print(f"\n{run_table(statuses)}\n", flush=True)
    if failures and not any(RunDirectory(run.directory).has_checkpoint() for run in runs):
        raise ResreproError(f"no run could be trained: {failures[0]}")
    incomplete = sum(s.state != "complete" for s in statuses)
    return incomplete, len(_elsewhere(runs, plan, train))


def _finish(name: str, runs: list[Config], plan: Plan, train: Train | None) -> list[str]:
    """Trains what is missing, and waits for what others train, which may die of it.

    Returns:
        Why runs failed, each reason once.
    """
    _check_data(runs)
    begun, failures = set[str](), list[str]()
    while missing := [run for run in _unfinished(runs) if run.name not in begun]:
        free = [run for run in missing if not _is_held(run)]
        if free:
            free.sort(key=cost, reverse=True)
            came = (train or processes.train(plan.jobs))(name, runs, free)
            begun |= came.runs
            failures += came.failures
        elif plan.wait:
            _wait_for(missing)
        else:
            break
    return failures


def _unfinished(runs: list[Config]) -> list[Config]:
    return [run for run in runs if not run_status(RunDirectory(run.directory)).is_finished]


def _is_held(run: Config) -> bool:
    return RunDirectory(run.directory).is_held()


def _elsewhere(runs: list[Config], plan: Plan, train: Train | None) -> list[Config]:
    """Runs that go on when this command ends: others hold them, or jobs that it handed in do."""
    if plan.wait:
        return []
    return [run for run in _unfinished(runs) if train or _is_held(run)]


def _wait_for(held: list[Config]) -> None:
    """Waits until one of some runs is held by nobody any more."""
    holders = [f"{run.name} ({RunDirectory(run.directory).holder()})" for run in held]
    print(
        f"waiting for {counted(len(held), 'run')} trained elsewhere: {several(holders)}; "
        "wait=false leaves them",
        flush=True,
    )
    with interruption.watched():
        while all(map(_is_held, held)):
            interruption.check()
            time.sleep(LOOK_SECONDS)


def _check_data(runs: list[Config]) -> None:
    """Compares what runs were trained on with the data there are now, each data set read once.

    Raises:
        ResreproError: a run was trained on other data.
    """
    read: list[tuple[Data, str]] = []
    for config in runs:
        run = RunDirectory(config.directory)
        if trained_on := run.data_digest():
            digest = next((digest for data, digest in read if data == config.data), None)
            if digest is None:
                digest = load(config.data).digest
                read.append((config.data, digest))
            run.check_data(trained_on, digest)
