"""Ends runs in every way there is, and tells whether they come out as an unbroken run does.

A run is started as the installed command, or as a fork of a process that has imported PyTorch
already (a `Nursery`): the same `resrepro.cli.main`, without the seconds that importing takes.
Only such a fork can be given a `Moment` to end at, to the very file operation.

RESREPRO_SOAK=KILLS (see scripts/soak) makes the tests that use this module thorough.
"""

import atexit
import csv
import json
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

COMMAND = str(Path(sys.executable).with_name("resrepro"))
SOAK = int(os.environ.get("RESREPRO_SOAK") or 0)
PATIENCE = 300.0  # seconds after which a process is taken to hang; the machine may be busy

# Everything that is random about a run, in a second or two: a warm-up that ends, rows that fall
# between checkpoints and checkpoints that fall between rows.
TINY = [
    "data=digits",
    "recipe=digits",
    "depth=8",
    "model.width=4",
    "threads=1",
    "device=cpu",
    "recipe.batch_size=32",
    "recipe.iterations=90",
    "recipe.warm_up.depth=8",
    "recipe.warm_up.until_error=89",
    "evaluate_every=7",
    "checkpoint_seconds=0.05",
]


def environment(folder: Path) -> dict[str, str]:
    """The tests' own, with data sets and archives kept in `folder`."""
    env = os.environ | {"RESREPRO_DATA": str(folder / "data-cache"), "COLUMNS": "200"}
    env.pop("HYDRA_FULL_ERROR", None)
    return env


def thorough(short: int, long: int) -> int:
    """A number of trials: for scripts/test, or for scripts/soak."""
    return long if SOAK else short


def thorough_range(short: Iterable[int], long: Iterable[int]) -> Iterable[int]:
    """The same for which trials."""
    return long if SOAK else short


def say(line: str) -> None:
    """Tells whoever waits for the soak how it goes."""
    if SOAK:
        print(f"  {line}", flush=True)


# Processes


class Life(Protocol):
    """A process of the program."""

    pid: int

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status, negative where a signal killed it; TimeoutError while it lives."""

    @property
    def out(self) -> str:
        """What it printed so far."""

    @property
    def err(self) -> str:
        """What it printed on standard error so far."""


class Command:
    """The installed command as a process group of its own."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, words: list[str], folder: Path) -> None:
        self._files = _log_files(folder)
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self._process = subprocess.Popen(
                [COMMAND, *words], stdout=out, stderr=err, start_new_session=True
            )
        self.pid = self._process.pid
        self.started.append(self._process)

    @classmethod
    def end_all(cls) -> None:
        """Kills what a failed test left behind."""
        while cls.started:
            process = cls.started.pop()
            if process.returncode is None:  # so that its number is nobody else's by now
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.pid} lives: {self.err}") from None

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()


@dataclass
class Moment:
    """When something befalls a fork, and what.

    Attributes:
        place: file (before an fsync or a rename), checkpoint file (those of its write alone),
            checkpoint (before one is written), evaluation (after a batch of it), iteration
            (before one), data (as they are loaded) or completion (after a complete run's
            summary is written).
        count: the how many-th time.
        signal: that the process sends itself, or 0.
        torn: whether the file that was to be synced is left with half of its content.
        error: what every file operation fails with from then on, or 0.
        stall: seconds for which the process does nothing.
    """

    place: str
    count: int
    signal: int = signal.SIGKILL
    torn: bool = False
    error: int = 0
    stall: float = 0.0


class Fork:
    """A fork of the nursery, as a process group of its own."""

    def __init__(self, nursery: "Nursery", pid: int, files: tuple[Path, Path]) -> None:
        self._nursery, self.pid, self._files = nursery, pid, files
        self._status: int | None = None

    @property
    def ended(self) -> bool:
        """Whether its end has been seen."""
        return self._status is not None

    def wait(self, timeout: float = PATIENCE) -> int:
        if self._status is None:
            self._status = int(self._nursery.listen("status", timeout))
        return self._status

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()


class Nursery:
    """A process that has imported everything and forks a life at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._life: Fork | None = None
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.listen("ready")

    def start(
        self,
        words: list[str],
        moment: Moment | None = None,
        limits: dict[str, int] | None = None,
        folder: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> Fork:
        """Starts `resrepro WORDS`.

        Args:
            words: of the command line.
            moment: when and how it ends.
            limits: of the process, such as RLIMIT_FSIZE: bytes that no file may grow beyond.
            folder: where it is started.
            environment: its variables; None: as the nursery's.
        """
        if self._life and not self._life.ended:
            kill(self._life)  # a failed test left it behind
        files = _log_files(self.folder)
        wish = {
            "words": words,
            "files": [str(file) for file in files],
            "moment": moment and asdict(moment),
            "limits": limits or {},
            "folder": str(folder or self.folder),
            "environment": environment,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wish).encode() + b"\n")
        self._life = Fork(self, int(self.listen("pid")), files)
        return self._life

    def listen(self, what: str, timeout: float = PATIENCE) -> str:
        """What the nursery says next, which must be what is waited for."""
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], timeout)[0]:
            raise TimeoutError
        said, _, value = stream.readline().decode().strip().partition(" ")
        assert said == what, f"the nursery says {said} {value}, and not {what}"
        return value

    def close(self) -> None:
        """Ends it."""
        if self._life and not self._life.ended:
            kill(self._life)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


@cache
def the_nursery() -> Nursery:
    """One for all tests of a session."""
    folder = Path(tempfile.mkdtemp(prefix="resrepro-nursery-"))
    there = Nursery(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(there.close)
    return there


def _log_files(folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    name = str(time.monotonic_ns())
    files = folder / f"{name}.out", folder / f"{name}.err"
    for file in files:
        file.touch()
    return files


def send(life: Life, number: int, whole_group: bool = True) -> None:
    """Sends a signal to a process, as `kill` does, or to its group, as Ctrl-C does."""
    assert life.pid > 1
    with suppress(ProcessLookupError):  # it came to its end by itself just now
        os.killpg(life.pid, number) if whole_group else os.kill(life.pid, number)


def kill(life: Life, number: int = signal.SIGKILL, whole_group: bool = True) -> int:
    """Sends a signal, waits for the end, and returns the status."""
    send(life, number, whole_group)
    return life.wait()


def lives_on(group: int) -> list[int]:
    """The processes of a group that are alive."""
    alive = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(process_group) == group and state not in "ZX":
                alive.append(int(file.parent.name))
    return alive


def wait_until(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> float:
    """Waits for something to be so; returns the seconds that took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.005)
    return time.monotonic() - began


def iteration_of(run: Path) -> int:
    """How far a run's summary says that it is; -1 before there is one."""
    try:
        return int(json.loads((run / "summary.json").read_bytes())["iteration"])
    except FileNotFoundError:
        return -1


def saved_iteration(run: Path) -> int:
    """Up to where a run is in its newest checkpoint."""
    import torch

    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    return int(state["iteration"])


# Outcomes

NUMBERS = (
    "status",
    "reason",
    "iteration",
    "iterations",
    "final_train_error",
    "final_test_error",
    "best_test_error",
    "clean_train_error",
    "parameters",
    "rows",
    "config_hash",
    "data_digest",
    "threads",
    "precision",
)


def outcome(run: Path) -> dict[str, Any]:
    """All of a run that must be the same in two runs of a configuration, flat, to the bit.

    Reads the files by itself, without the program's own readers.
    """
    import torch

    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.reader(file))
    last = table[0].index("seconds")
    found: dict[str, Any] = {"header": table[0]}
    for row in table[1:]:
        found[f"metrics.csv at {row[0]}"] = row[:last] + row[last + 1 :]
    summary = json.loads((run / "summary.json").read_bytes())
    found |= {f"summary.json {key}": summary[key] for key in NUMBERS}
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    tensors = dict(state["network"]) | {"sums": state["sums"]}
    for i, gathered in state["optimizer"]["state"].items():
        tensors |= {f"optimizer {i} {key}": value for key, value in gathered.items()}
    found |= {f"checkpoint.pt {key}": tensor.numpy().tobytes() for key, tensor in tensors.items()}
    for key in ("iteration", "warming_up"):
        found[f"checkpoint.pt {key}"] = state[key]
    found["checkpoint.pt rows"] = [row[:last] + row[last + 1 :] for row in state["rows"]]
    return found


def unequal(run: Path, unbroken: dict[str, Any]) -> list[str]:
    """What is not as in an unbroken run; nothing, if all is well."""
    found = outcome(run)
    keys = unbroken | found
    return [key for key in keys if found.get(key) != unbroken.get(key)]


def standing_of(run: Path) -> str:
    """The state in which `resrepro status` sees a run."""
    from resrepro.runs.run_directory import RunDirectory
    from resrepro.runs.status import run_status

    return run_status(RunDirectory(run)).state


def one_line_only(text: str) -> bool:
    """Whether a message is one line and no traceback."""
    return text.count("\n") == 1 and "Traceback" not in text and len(text) > 10


def live_and_die(
    start: Callable[[], Life], kills: int, span: tuple[float, float], seed: int, **how: Any
) -> int:
    """Starts the same command again and again and kills it at random moments.

    Args:
        start: the command.
        kills: after how many to stop.
        span: between which seconds of a life it ends, uniformly.
        seed: of the moments.
        how: to kill, see `kill`.

    Returns:
        How often it was killed: fewer times where it came to its end before.
    """
    chance = random.Random(seed)
    for killed in range(kills):
        life = start()
        try:
            status = life.wait(chance.uniform(*span))
        except TimeoutError:
            status = kill(life, **how)
        if status == 0:
            return killed
        assert status == -signal.SIGKILL, f"status {status}: {life.err}"
    return kills


# What follows runs inside the nursery and its forks.


def _tend() -> None:
    """Forks a life for each line on standard input; says its process id, then its status."""
    import sklearn.datasets  # noqa: F401
    import torch

    import resrepro.cli
    import resrepro.configuration.composition
    import resrepro.paper.artefacts
    import resrepro.studies.sweep
    import resrepro.training.trainer  # noqa: F401

    torch.use_deterministic_algorithms(False)  # imports a third of PyTorch
    print("ready", flush=True)
    for line in sys.stdin:
        wish = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(**wish)
        with suppress(OSError):
            os.setpgid(pid, pid)  # here too, so that it is done whoever comes first
        print("pid", pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print("status", os.waitstatus_to_exitcode(status), flush=True)


def _live(
    words: list[str],
    files: list[str],
    moment: dict[str, Any] | None,
    limits: dict[str, int],
    folder: str,
    environment: dict[str, str] | None,
) -> None:
    import resource

    from resrepro import cli

    os.setpgid(0, 0)
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    status = 70
    try:
        if moment:
            _arm(Moment(**moment))
        for name, limit in limits.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        status = cli.main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _arm(moment: Moment) -> None:
    """Has the moment come to pass."""
    passed = 0

    def is_now() -> bool:
        nonlocal passed
        passed += 1
        return passed == moment.count

    def strike() -> None:
        if moment.signal:
            os.kill(os.getpid(), moment.signal)
        if moment.stall:
            time.sleep(moment.stall)

    arm = {"file": _arm_files, "checkpoint file": _arm_files, "data": _arm_data}
    arm.get(moment.place, _arm_trainer)(moment, is_now, strike)


def _arm_files(moment: Moment, is_now: Callable[[], bool], strike: Callable[[], None]) -> None:
    from resrepro.runs.run_directory import RunDirectory

    real_fsync, real_replace, real_save = os.fsync, os.replace, RunDirectory.save_checkpoint
    counts, failing = moment.place == "file", False

    def before(torn: int | None = None, name: str | None = None) -> None:
        nonlocal failing
        if counts and is_now():
            failing = bool(moment.error)
            if torn is not None and moment.torn and stat.S_ISREG(os.fstat(torn).st_mode):
                os.ftruncate(torn, os.fstat(torn).st_size // 2)
            strike()
        if failing:
            raise OSError(moment.error, os.strerror(moment.error), name)

    def fsync(descriptor: int) -> None:
        before(torn=descriptor)
        real_fsync(descriptor)

    def replace(source: Any, target: Any, **options: Any) -> None:
        before(name=str(target))
        real_replace(source, target, **options)

    def save(self: RunDirectory, *state: Any) -> None:
        nonlocal counts
        counts = True
        real_save(self, *state)
        counts = moment.place == "file"

    os.fsync, os.replace = fsync, replace  # type: ignore[assignment]
    RunDirectory.save_checkpoint = save  # type: ignore[method-assign]


def _arm_data(_moment: Moment, is_now: Callable[[], bool], strike: Callable[[], None]) -> None:
    import sklearn.datasets

    real = sklearn.datasets.load_digits

    def load_digits() -> Any:
        bunch = real()
        if is_now():
            strike()
        return bunch

    sklearn.datasets.load_digits = load_digits


def _arm_trainer(moment: Moment, is_now: Callable[[], bool], strike: Callable[[], None]) -> None:
    from resrepro.data.batches import Batches
    from resrepro.runs.run_directory import RunDirectory

    unaugmented, batch = Batches.unaugmented, Batches.__call__
    save, sum_up = RunDirectory.save_checkpoint, RunDirectory.write_summary

    def evaluation(self: Batches, split: str) -> Iterator[Any]:
        for images in unaugmented(self, split):
            yield images
            if is_now():
                strike()

    def iteration(self: Batches, number: int) -> Any:
        if is_now():
            strike()
        return batch(self, number)

    def checkpoint(self: RunDirectory, *state: Any) -> None:
        if is_now():
            strike()
        save(self, *state)

    def completion(self: RunDirectory, summary: dict[str, Any], *rows: Any) -> None:
        sum_up(self, summary, *rows)
        if summary["status"] == "complete" and is_now():
            strike()

    place = {
        "evaluation": (Batches, "unaugmented", evaluation),
        "iteration": (Batches, "__call__", iteration),
        "checkpoint": (RunDirectory, "save_checkpoint", checkpoint),
        "completion": (RunDirectory, "write_summary", completion),
    }
    setattr(*place[moment.place])


if __name__ == "__main__":
    _tend()
