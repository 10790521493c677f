"""Runs of a study on this machine: several at a time, a process of its own for each."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from resrepro import extension, interruption
from resrepro.configuration.schema import Config
from resrepro.errors import Interrupted, Locked, one_line
from resrepro.progress import Progress, Watcher
from resrepro.runs.run_directory import RunDirectory
from resrepro.studies import cards
from resrepro.studies.display import Display, done_of
from resrepro.studies.plan import cost

# What a run imports: PyTorch, what its optimizers bring along, scikit-learn. None of them may
# touch a GPU when imported: processes could not be forked from there any more.
PRELOADED = ["resrepro.training.trainer", "torch._dynamo", "resrepro.data.digits"]


@dataclass(frozen=True)
class Begun:
    """What came of an attempt to train runs.

    Attributes:
        runs: the names of those that were begun here; the others had been begun elsewhere.
        failures: why runs failed, each reason once.
    """

    runs: set[str]
    failures: list[str]


# Trains some of a study's runs: what it is called, all of them, those that are to be trained.
Train = Callable[[str, list[Config], list[Config]], Begun]


@dataclass(frozen=True)
class Shares:
    """How the machine is shared out: a device for each of the runs at once, and its threads."""

    devices: list[str]
    threads: int | None


def share_out(runs: list[Config], jobs: int | None) -> Shares:
    """As many runs a GPU as it takes, on the one that is named or all there are, else one a core.

    Small nets keep two cores busier as two runs than as one. The cores' shares depend on the
    whole study and not on what is left of it: a study that is stopped and started again gives the
    same bits.
    """
    import joblib
    import torch

    wanted = runs[0].device
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if gpus:
        names = [wanted] if ":" in wanted else [f"cuda:{i}" for i in range(gpus)]
        if jobs is None:
            return Shares(cards.shared_out(max(runs, key=cost), len(runs), names), None)
        return Shares([names[i % len(names)] for i in range(jobs)], None)
    cores = joblib.cpu_count()  # heeds affinity and a container's share
    jobs = jobs or min(cores, len(runs))
    return Shares([wanted] * jobs, max(1, cores // jobs))


def train(jobs: int | None) -> Train:
    """Trains runs by processes on this machine, `jobs` at once, or as many as suit it."""

    def train_them(name: str, runs: list[Config], waiting: list[Config]) -> Begun:
        shares = share_out(runs, jobs)
        at_once = len(shares.devices)
        print(f"{name}: {done_of(runs, waiting)}, {at_once} at a time", flush=True)
        with interruption.watched(), Display(name, runs, waiting, at_once) as display:
            begun = _train_all(waiting, shares, display)
        return Begun(begun, list(display.failures))

    return train_them


def _train_all(runs: list[Config], shares: Shares, display: Display) -> set[str]:
    """Trains runs in their order, as many at once as there are shares; passes over those held.

    Returns:
        The names of those that nobody else held.
    """
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

    def train_next(run: Config) -> bool:
        """Trains a run. Whether nobody else held it."""
        # A run may end, and its place be free, before this process has looked.
        if stopping.is_set() or interruption.is_requested():
            return True
        if RunDirectory(run.directory).is_held():  # by now
            return False
        device = free.pop()
        try:
            here = replace(run, device=device, threads=run.threads or shares.threads)
            return _train_in_process(context, here, display, stopping)
        finally:
            free.append(device)

    with ThreadPoolExecutor(len(shares.devices)) as pool:
        futures = {run.name: pool.submit(train_next, run) for run in runs}
        try:
            while not all(future.done() for future in futures.values()):
                interruption.check()
                display.refresh()
                stopping.wait(0.2)
        except BaseException:
            stopping.set()
            raise
    return {name for name, future in futures.items() if future.result()}


def _train_in_process(
    context: Any, run: Config, display: Display, stopping: threading.Event
) -> bool:
    """Trains a run in a process of its own. Whether nobody else held it."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, sender, extension.loaded()), name=run.name)
    process.start()
    sender.close()
    told_to_stop = is_held = False
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
                    case Held():
                        is_held = True
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
    return not is_held


@dataclass(frozen=True)
class Failed:
    """What a run's process says last, if an error ends it."""

    reason: str


class Held:
    """What it says if another process has begun the run in the meantime."""


def _work(run: Config, sender: Connection, extensions: list[str]) -> None:
    """What the process of a run does; the run directory tells how it went."""
    from resrepro.training import trainer

    def send(news: Progress | Failed | Held | str) -> None:
        try:
            sender.send(news)
        except BrokenPipeError:  # whoever asked for this run is gone
            raise Interrupted(signal.SIGTERM) from None

    try:
        with interruption.watched():
            extension.load_extensions(extensions)
            trainer.train(run, Watcher(send, send))
    except Interrupted as stop:
        sys.exit(stop.status)
    except Locked:
        send(Held())
    except Exception as error:  # whatever it is, the other runs go on
        send(Failed(one_line(error)))
        sys.exit(1)
