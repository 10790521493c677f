"""A study: many runs, several at a time, one process each."""

import multiprocessing
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf

from resrepro import extension, interruption
from resrepro.configuration import composition
from resrepro.configuration.schema import Config, Data
from resrepro.data import load
from resrepro.errors import ConfigError, Interrupted, ResreproError, one_line
from resrepro.progress import Progress, Watcher, bar, fitting, screen, tenths
from resrepro.runs.run_directory import RunDirectory, plan_seeds
from resrepro.runs.status import run_table, several, standing
from resrepro.studies.constructed import constructed_solutions

OWN_KEYS = ("study", "jobs", "hydra")
# What a run imports: PyTorch, what its optimizers bring along, scikit-learn. None of them may
# touch a GPU when imported: processes could not be forked from there any more.
PRELOADED = ["resrepro.training.trainer", "torch._dynamo", "resrepro.data.digits"]
ARTEFACTS = ("error-vs-depth", "figure1", "figure6", "figure7", "table6", "claims", "report")
ORPHAN_SECONDS = 20.0


@dataclass(frozen=True)
class Plan:
    """What a study does.

    Attributes:
        name: the study's.
        runs: all of them, complete or not.
        artefacts: that are made of them.
        jobs: how many run at once; None to decide by the machine.
        seeds: how many of each net are planned in all; verdicts say so. None where none are.
    """

    name: str
    runs: list[Config]
    artefacts: list[str]
    jobs: int | None
    seeds: int | None = None

    @property
    def outputs(self) -> str:
        """The folder that the experiment's folder lies in."""
        return self.runs[0].outputs

    @property
    def experiment(self) -> str:
        """The experiment that the runs belong to."""
        return self.runs[0].experiment


def plan_study(composed: DictConfig, of_runs: list[str], config_dir: str | None) -> Plan:
    """The runs of a study, the user's overrides over the study's.

    Raises:
        ConfigError: the study, or one of its runs, is not configured right.
    """
    jobs = composed.jobs
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise ConfigError(f"jobs={jobs}: must be 1 or more")
    # Not resolved: ${recipe.learning_rate} in a study means the run's.
    study: Any = OmegaConf.to_container(composed.study, resolve=False)
    try:
        name, artefacts = study["name"], list(study["artefacts"])
        common = [f"experiment={name}", *composition.words_of(study["overrides"])]
        sweeps = [common + composition.words_of(sweep) + of_runs for sweep in study["runs"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"a study needs name, runs and artefacts (lists) and overrides (a text): {error}"
        ) from error
    if unknown := set(artefacts) - {"constructed", *ARTEFACTS}:
        raise ConfigError(f"study {name}: there is no artefact {', '.join(sorted(unknown))}")
    runs = composition.expand("train", sweeps, config_dir)
    if len({(run.outputs, run.experiment) for run in runs}) > 1:
        raise ConfigError("a study has one experiment and one outputs folder: sweep over neither")
    seeds = study.get("seeds")
    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1):
        raise ConfigError(f"study {name}: seeds={seeds}: must be 1 or more, how many are planned")
    return Plan(name, runs, artefacts, jobs, seeds)


def run_study(plan: Plan) -> int:
    """Trains all runs that are not complete, longest first, and prints a table of all.

    Returns:
        How many are not complete.

    Raises:
        Interrupted: a signal came; every run is saved, and the same call goes on.
    """
    if plan.seeds is not None:
        plan_seeds(Path(plan.outputs).expanduser() / plan.experiment, plan.seeds)
    failures = _train_waiting(f"study {plan.name}", plan.runs, plan)
    runs = plan.runs
    if "constructed" in plan.artefacts:
        made = constructed_solutions(plan.runs)
        failures += _train_waiting("constructed solutions", made, plan)
        runs = runs + made
    standings = [standing(RunDirectory(run.directory)) for run in runs]
    print(f"\n{run_table(standings)}\n", flush=True)
    if failures and not any(RunDirectory(run.directory).has_checkpoint() for run in runs):
        raise ResreproError(f"no run could be trained: {failures[0]}")
    return sum(s.state != "complete" for s in standings)


def _train_waiting(name: str, runs: list[Config], plan: Plan) -> list[str]:
    """Trains those that are to be trained. Returns why runs failed, each reason once."""
    _check_data(runs)
    waiting = [run for run in runs if _state(run) not in ("complete", "diverged")]
    if not waiting:
        return []
    shares = share_out(runs, plan.jobs)
    at_once = len(shares.devices)
    print(
        f"{name}: {counted(len(runs), 'run')}, {len(runs) - len(waiting)} of them done, "
        f"{at_once} at a time",
        flush=True,
    )
    with interruption.watched(), Display(name, runs, waiting, at_once) as display:
        _train_all(sorted(waiting, key=cost, reverse=True), shares, display)
    return list(display.failures)


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


def _state(run: Config) -> str:
    return standing(RunDirectory(run.directory)).state


def cost(run: Config) -> float:
    """What a run's time is about proportional to."""
    return run.depth * (1 + run.recipe.iterations) * run.recipe.batch_size * run.model.width**2


@dataclass(frozen=True)
class Shares:
    """How the machine is shared out: a device for each of the runs at once, and its threads."""

    devices: list[str]
    threads: int | None


def share_out(runs: list[Config], jobs: int | None) -> Shares:
    """One run a GPU, on the one that is named or all there are, else one a core with its share.

    Small nets keep two cores busier as two runs than as one. The shares depend on the whole
    study and not on what is left of it: a study that is stopped and started again gives the
    same bits.
    """
    import joblib
    import torch

    wanted = runs[0].device
    if wanted.startswith("cuda:"):
        return Shares([wanted] * (jobs or 1), None)
    gpus = torch.cuda.device_count() if wanted in ("auto", "cuda") else 0
    if gpus:
        jobs = jobs or min(gpus, len(runs))
        return Shares([f"cuda:{i % gpus}" for i in range(jobs)], None)
    cores = joblib.cpu_count()  # heeds affinity and a container's share
    jobs = jobs or min(cores, len(runs))
    return Shares([wanted] * jobs, max(1, cores // jobs))


def _train_all(runs: list[Config], shares: Shares, display: "Display") -> None:
    """Trains runs in their order, as many at once as there are shares."""
    # A fresh process a run: one that dies takes no other with it. Where there is a fork server
    # it imports once for all of them what each would.
    context: Any = multiprocessing.get_context("spawn")
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        resource_tracker.ensure_running()  # starting it would let the signal through
        with interruption.deferred():
            forkserver.ensure_running()
    free = list(shares.devices)
    stopping = threading.Event()

    def train_next(run: Config) -> None:
        # A run may end, and its place be free, before this process has looked.
        if not stopping.is_set() and not interruption.is_requested():
            device = free.pop()
            try:
                here = replace(run, device=device, threads=run.threads or shares.threads)
                _train_in_process(context, here, display, stopping)
            finally:
                free.append(device)

    with ThreadPoolExecutor(len(shares.devices)) as pool:
        futures = [pool.submit(train_next, run) for run in runs]
        try:
            while not all(future.done() for future in futures):
                interruption.check()
                display.refresh()
                stopping.wait(0.2)
        except BaseException:
            stopping.set()
            raise
    for future in futures:
        future.result()


def _train_in_process(
    context: Any, run: Config, display: "Display", stopping: threading.Event
) -> None:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, sender, extension.loaded()), name=run.name)
    process.start()
    sender.close()
    told_to_stop = False
    try:
        while True:
            if stopping.is_set() and not told_to_stop:
                process.terminate()  # SIGTERM: the run saves and stops
                told_to_stop = True
            if receiver.poll(0.2):
                match receiver.recv():
                    case Progress() as now:
                        display.progress(run, now)
                    case Failed(reason):
                        display.fail(run, reason)
                    case line:
                        display.say(line)
    except EOFError:
        pass  # it has ended
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
        display.end(run)
    is_stopping = told_to_stop or interruption.is_requested()
    if process.exitcode < 0 and not is_stopping:
        display.fail(run, f"its process died of signal {-process.exitcode}")


@dataclass(frozen=True)
class Failed:
    """What a run's process says last, if an error ends it."""

    reason: str


def _work(run: Config, sender: Connection, extensions: list[str]) -> None:
    """What the process of a run does; the run directory tells how it went."""
    from resrepro.training.trainer import train

    def tell(news: Progress | Failed | str) -> None:
        try:
            sender.send(news)
        except BrokenPipeError:  # whoever asked for this run is gone
            raise Interrupted(signal.SIGTERM) from None

    try:
        with interruption.watched():
            extension.load_extensions(extensions)
            _wait_for_lock(run)
            train(run, Watcher(tell, tell))
    except Interrupted as stop:
        sys.exit(stop.status)
    except Exception as error:  # whatever it is, the other runs go on
        tell(Failed(one_line(error)))
        sys.exit(1)


def _wait_for_lock(run: Config) -> None:
    """Gives the process of a study that was killed a moment ago the time to notice and to save."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while RunDirectory(run.directory).is_locked() and time.monotonic() < deadline:
        interruption.check()
        time.sleep(0.2)


class Display:
    """A bar for all runs of a study and one for each that goes on, and what happens to each.

    Where there is no terminal, a line each tenth of a run in their place.

    Attributes:
        failures: the runs that ended by an error, by what it said.
    """

    TOTAL = "{desc}: {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}"
    RUN = "  {desc} {percentage:3.0f}%|{bar:10}| "

    def __init__(self, name: str, runs: list[Config], waiting: list[Config], at_once: int) -> None:
        self.costs = {run.name: cost(run) for run in runs}
        self.done = {run.name: 0.0 if run in waiting else 1.0 for run in runs}
        self.running: dict[str, Progress] = {}
        self.failures: dict[str, list[str]] = {}
        self.told = {run.name: tenths(run.name) for run in waiting}
        self.widest = max(map(len, self.told))
        begun = self._weight()
        self.bar = bar(sum(self.costs.values()), name, "", initial=begun, bar_format=self.TOTAL)
        self.lines: list[Any] = []
        if not self.bar.disable:
            room = max(0, screen().lines - 3)  # tqdm keeps the last two to itself
            self.lines = [
                bar(1, "", "", position=1 + i, leave=False, bar_format="{desc}")
                for i in range(min(at_once, room))
            ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for line in reversed(self.lines):
            line.close()
        self.bar.close()
        for names in self.failures.values():
            if len(names) > 1:
                print(f"{several(names[1:])}: the same", flush=True)

    def _weight(self) -> float:
        return sum(self.costs[name] * share for name, share in self.done.items())

    def say(self, line: str) -> None:
        """Writes a line above the bars."""
        self.bar.write(line)
        sys.stdout.flush()

    def fail(self, run: Config, reason: str) -> None:
        """Takes in that a run failed; of one reason only the first run is told at once."""
        names = self.failures.setdefault(reason, [])
        names.append(run.name)
        if len(names) == 1:
            self.say(f"{run.name}: {reason}")

    def progress(self, run: Config, now: Progress) -> None:
        """Takes in how far a run is."""
        if self.bar.disable:
            if line := self.told[run.name](now):
                self.say(line)
            return
        if run.name not in self.running:
            # What a resumed run had done before took no time now.
            self.bar.initial += self.costs[run.name] * now.share
        self.running[run.name] = now
        self.done[run.name] = now.share

    def end(self, run: Config) -> None:
        """Takes in that a run's process has ended."""
        self.running.pop(run.name, None)

    def refresh(self) -> None:
        """Draws the bars anew."""
        if self.bar.disable:
            return
        complete = sum(share == 1 for share in self.done.values())
        self.bar.n, self.bar.postfix = self._weight(), None
        runs = [f"{complete} of {counted(len(self.done), 'run')}"]
        self.bar.postfix = fitting(runs, screen().columns - len(str(self.bar)) - 3)
        self.bar.refresh()
        running = list(self.running.items())
        shown = len(self.lines) if len(running) <= len(self.lines) else len(self.lines) - 1
        for line, (name, now) in zip(self.lines, running[:shown], strict=False):
            line.bar_format, line.desc = self.RUN, f"{name:{self.widest}}"
            line.n = now.share
            line.bar_format += fitting(now.parts(), screen().columns - len(str(line)) - 1)
            line.refresh()
        for line in self.lines[len(running[:shown]) :]:
            line.bar_format, line.desc = "{desc}", ""
            if line is self.lines[-1] and len(running) > shown:
                line.desc = f"  and {len(running) - shown} more"
            line.refresh()


def counted(count: int, word: str) -> str:
    """1 run, 2 runs."""
    return f"{count} {word}{'' if count == 1 else 's'}"
