"""A signal stops a run, a sweep or a study soon, and the same command goes on with it."""

import fcntl
import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import survival
from survival import TINY, Command, Life, Moment, Nursery, lives_on, outcome, unequal

from resrepro import interruption
from resrepro.errors import Interrupted

NAME = "residual-8-s0"
SOON = 5.0  # seconds within which a run must have saved and stopped
PAUSE = 60.0
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGHUP: 129}


def some(first: Any, *others: Any) -> list[Any]:
    """All trials for scripts/soak, for scripts/test the first."""
    return [first, *others] if survival.SOAK else [first]


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    return survival.the_nursery()


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    Command.end_all()


@pytest.fixture(scope="module")
def unbroken(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outputs = tmp_path_factory.mktemp("unbroken")
    assert nursery.start(train_words(outputs)).wait() == 0
    return outcome(outputs / "digits" / NAME)


def train_words(outputs: Path, *more: str) -> list[str]:
    return ["train", *more, *TINY, f"outputs={outputs}"]


def seconds_to_end(life: Life, number: signal.Signals, whole_group: bool = False) -> float:
    """Sends a signal, and returns the seconds until the end."""
    began = time.monotonic()
    survival.kill(life, number, whole_group)
    return time.monotonic() - began


def summary_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_bytes()))


def check_interrupted(run: Path) -> None:
    summary = summary_of(run)
    assert summary["status"] == "interrupted"
    assert "the same command goes on" in summary["reason"]
    assert survival.standing_of(run) == "interrupted"
    assert survival.saved_iteration(run) == summary["iteration"], "what was done is not saved"


@pytest.mark.parametrize("number", some(signal.SIGINT, signal.SIGTERM))
def test_the_installed_command_saves_and_stops(
    unbroken: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    words, run = train_words(tmp_path, "checkpoint_seconds=1000"), tmp_path / "digits" / NAME
    life = Command(words, tmp_path / "log")
    survival.wait_until(lambda: survival.iteration_of(run) >= 7, "a row")
    seconds = seconds_to_end(life, number)
    assert life.wait() == STATUS[number], life.err
    assert seconds < SOON
    assert life.err.splitlines()[-1] == (
        "resrepro train: stopped; the same command goes on from here"
    )
    assert "Traceback" not in life.err
    check_interrupted(run)
    assert Command(words, tmp_path / "log").wait() == 0
    assert unequal(run, unbroken) == []


MOMENTS = [
    Moment("iteration", 1),
    Moment("iteration", 20),  # in the warm-up
    Moment("iteration", 85),
    Moment("evaluation", 2),
    Moment("evaluation", 14),  # of the training set, when all else is done
    Moment("checkpoint file", 2),
]


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (moment, number)
        for place, moment in enumerate(MOMENTS)
        for which, number in enumerate(STATUS)
        if survival.SOAK or which == place % 4
    ],
    ids=lambda value: f"{value.place}-{value.count}" if isinstance(value, Moment) else value.name,
)
def test_a_signal_at_any_place(
    nursery: Nursery,
    unbroken: dict[str, Any],
    tmp_path: Path,
    moment: Moment,
    number: signal.Signals,
) -> None:
    words, run = train_words(tmp_path, "checkpoint_seconds=0.1"), tmp_path / "digits" / NAME
    life = nursery.start(words, Moment(moment.place, moment.count, signal=number))
    assert life.wait() == STATUS[number], life.err
    check_interrupted(run)
    life = nursery.start(words)
    assert life.wait() == 0, life.err
    assert unequal(run, unbroken) == []


def test_a_signal_while_the_data_are_prepared(
    nursery: Nursery, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    words, run = train_words(tmp_path), tmp_path / "digits" / NAME
    life = nursery.start(words, Moment("data", 1, signal=signal.SIGTERM))
    assert life.wait() == 143, life.err
    assert summary_of(run)["status"] == "interrupted"
    assert nursery.start(words, Moment("iteration", 12, signal=signal.SIGTERM)).wait() == 143
    assert nursery.start(words, Moment("data", 1, signal=signal.SIGINT)).wait() == 130
    check_interrupted(run)
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken) == []


def test_signals_again_and_again(
    nursery: Nursery, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    words, run = train_words(tmp_path, "checkpoint_seconds=1000"), tmp_path / "digits" / NAME
    chance = random.Random(5)
    for _ in range(survival.thorough(5, 30)):
        place, number = chance.choice(["iteration", "evaluation"]), chance.choice(list(STATUS))
        count = chance.randrange(1, 12 if survival.SOAK == 0 else 3) if place == "iteration" else 1
        status = nursery.start(words, Moment(place, count, number)).wait()
        if status == 0:
            break
        assert status == STATUS[number]
        check_interrupted(run)
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken) == []


def test_a_second_ctrl_c_stops_at_once(
    nursery: Nursery, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    words, run = train_words(tmp_path), tmp_path / "digits" / NAME
    life = nursery.start(words, Moment("iteration", 30, signal=0, stall=PAUSE))
    survival.wait_until(lambda: survival.iteration_of(run) >= 28, "iteration 28")
    time.sleep(0.3)
    began = time.monotonic()
    survival.send(life, signal.SIGINT)
    with pytest.raises(TimeoutError):
        life.wait(1.5)
    assert "once more stops at once" in life.err
    survival.send(life, signal.SIGINT)
    assert life.wait() == 130
    assert time.monotonic() - began < PAUSE / 2, "it was not at once"
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken) == []


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (signal.SIGTERM, signal.SIGTERM),  # srun passes it on, and slurmstepd sends it too
        (signal.SIGUSR1, signal.SIGTERM),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),  # within a second: held down, or passed on as well
    ],
)
def test_a_scheduler_that_signals_twice_loses_nothing(
    nursery: Nursery, tmp_path: Path, first: signal.Signals, again: signal.Signals
) -> None:
    words, run = train_words(tmp_path, "checkpoint_seconds=1000"), tmp_path / "digits" / NAME
    life = nursery.start(words, Moment("iteration", 30, signal=0, stall=1.5))
    survival.wait_until(lambda: survival.iteration_of(run) >= 28, "iteration 28")
    time.sleep(0.3)
    survival.send(life, first)
    time.sleep(0.05)
    survival.send(life, again)
    assert life.wait() == STATUS[first], life.err
    check_interrupted(run)


def test_a_closed_terminal_stops_and_saves(tmp_path: Path) -> None:
    """SIGHUP, and writing to the terminal fails from then on."""
    controller, terminal = pty.openpty()
    run = tmp_path / "digits" / NAME
    words = train_words(tmp_path, "recipe.iterations=20000", "checkpoint_seconds=1000")
    with subprocess.Popen(
        [survival.COMMAND, *words],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 (no threads yet)
    ) as process:
        os.close(terminal)
        is_closed = threading.Event()
        reader = threading.Thread(target=read_until, args=(is_closed, controller))
        reader.start()
        survival.wait_until(lambda: survival.iteration_of(run) >= 7, "a row")
        is_closed.set()
        reader.join()
        os.close(controller)
        assert process.wait(PAUSE) == STATUS[signal.SIGHUP]
    check_interrupted(run)


def read_until(is_closed: threading.Event, controller: int) -> None:
    """Reads what is written to a terminal, so that it does not fill up."""
    while not is_closed.is_set():
        if select.select([controller], [], [], 0.1)[0]:
            os.read(controller, 4096)


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.watched():
            os.kill(os.getpid(), signal.SIGHUP)
            interruption.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_depth_56_saves_and_stops_within_five_seconds(nursery: Nursery, tmp_path: Path) -> None:
    """With the default recipe and width, at each of three places."""
    words = ["train", "data=digits", "recipe=digits", "depth=56", "device=cpu", "threads=1"]
    words += [f"outputs={tmp_path}"]
    for place in ("iteration", "evaluation", "iteration"):
        life = nursery.start(words, Moment(place, 2, signal=signal.SIGTERM))
        survival.wait_until(lambda life=life: "stopping and saving" in life.err, "the signal")
        began = time.monotonic()
        assert life.wait() == 143, life.err
        assert time.monotonic() - began < SOON
        check_interrupted(tmp_path / "digits" / "residual-56-s0")


def test_a_signal_while_the_program_starts(tmp_path: Path) -> None:
    """Before there is a run, too, it ends without a traceback."""
    chance = random.Random(6)
    for number in some(signal.SIGINT, *[signal.SIGINT] * 9, *[signal.SIGTERM] * 5):
        life = Command([*train_words(tmp_path), "recipe.iterations=100000"], tmp_path / "log")
        time.sleep(chance.uniform(0.5, 3.0))
        survival.send(life, number)
        assert life.wait() in (STATUS[number], -number), life.err
        assert "Traceback" not in life.err


def test_a_signal_that_an_import_swallows_is_not_lost() -> None:
    with interruption.noted():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted), interruption.watched():
            pytest.fail("it began")
    with interruption.noted(), interruption.watched():
        interruption.check()  # that of another command is forgotten


def test_a_second_ctrl_c_at_once_is_the_same_one() -> None:
    """It must not break into what the first has begun: an import, the last line, the end."""
    with interruption.noted():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    with interruption.noted():
        with suppress(Interrupted), interruption.watched():
            os.kill(os.getpid(), signal.SIGINT)
            interruption.check()
        os.kill(os.getpid(), signal.SIGINT)  # while what was stopped is told


def test_a_later_ctrl_c_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "AGAIN_SECONDS", 0.0)
    with interruption.noted():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)


def test_a_program_that_ends_is_not_disturbed() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with interruption.noted(is_program=True):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, before)
        with interruption.noted():
            pass
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_ctrl_c_while_the_command_is_imported_is_quiet() -> None:
    program = """
import sys
class Press:
    def find_spec(self, name, *_):
        if name == "resrepro.extension":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Press())
import resrepro.cli
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_what_is_started_while_ctrl_c_is_deferred_never_sees_it() -> None:
    with interruption.deferred():
        process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        os.killpg(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(KeyboardInterrupt), interruption.noted(), interruption.deferred():
        os.kill(os.getpid(), signal.SIGINT)


# Sweeps and studies


def test_ctrl_c_in_a_studys_first_seconds_is_quiet(tmp_path: Path) -> None:
    """While what its processes are forked from still imports; and again at once."""
    words = ["reproduce", "study=smoke", "jobs=2", "device=cpu", f"outputs={tmp_path}"]
    life = Command([*words, "recipe.iterations=20000"], tmp_path / "log")
    survival.wait_until(lambda: "at a time" in life.out, "the first runs")
    time.sleep(0.3)
    survival.send(life, signal.SIGINT, whole_group=True)
    time.sleep(0.05)
    survival.send(life, signal.SIGINT, whole_group=True)
    assert life.wait() == 130, life.err
    assert life.err.splitlines()[-1] == (
        "resrepro reproduce: stopped; the same command goes on from here"
    )
    assert "Traceback" not in life.err
    assert "begins" not in life.out
    assert "died" not in life.out
    survival.wait_until(lambda: not lives_on(life.pid), "the end of all processes", SOON)


def test_ctrl_c_stops_a_sweep(nursery: Nursery, unbroken: dict[str, Any], tmp_path: Path) -> None:
    words = train_words(tmp_path, "-m", "seed=0,1,2")
    runs = [tmp_path / "digits" / f"residual-8-s{seed}" for seed in range(3)]
    # In the second run: the first is complete, the third has not begun.
    life = nursery.start(words, Moment("iteration", 110, signal=signal.SIGINT))
    assert life.wait() == 130, life.err
    assert [survival.standing_of(runs[0]), survival.standing_of(runs[1])] == [
        "complete",
        "interrupted",
    ]
    check_interrupted(runs[1])
    assert not runs[2].exists()
    table, _, note = life.out[life.out.index("\nrun  ") + 1 :].partition("\n\n")
    assert table.splitlines()[-1].split()[:2] == [runs[2].name, "waiting"]
    assert note.endswith(f"{runs[1].name}: stopped by a signal; the same command goes on\n")
    life = nursery.start(words)
    assert life.wait() == 0, life.err
    assert unequal(runs[0], unbroken) == []
    for seed in (1, 2):
        other = tmp_path / "alone"
        assert nursery.start(train_words(other, f"seed={seed}")).wait() == 0
        assert unequal(runs[seed], outcome(other / "digits" / f"residual-8-s{seed}")) == []


@pytest.mark.parametrize("number", some(signal.SIGTERM, signal.SIGINT))
def test_a_signal_in_the_last_breath_of_a_run_stops_the_sweep(
    nursery: Nursery, tmp_path: Path, number: signal.Signals
) -> None:
    """The run is complete, and nothing looks at the signal any more; the next must not begin."""
    words = train_words(tmp_path, "-m", "seed=0,1")
    life = nursery.start(words, Moment("completion", 1, signal=number))
    assert life.wait() == STATUS[number], life.err
    assert survival.standing_of(tmp_path / "digits" / NAME) == "complete"
    assert not (tmp_path / "digits" / "residual-8-s1").exists()


@pytest.mark.parametrize(
    ("number", "whole_group"),
    some((signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)),
)
def test_a_signal_stops_a_study(tmp_path: Path, number: signal.Signals, whole_group: bool) -> None:
    """Ctrl-C reaches all processes of a terminal, and `kill` the parent alone.

    The runs are slow ones: a signal that comes twice must not end them before they have saved.
    """
    words = ["reproduce", "study=smoke", "jobs=2", "depth=56", "recipe.iterations=100"]
    words += ["evaluate_every=1", "threads=1", "device=cpu", f"outputs={tmp_path}"]
    life = Command(words, tmp_path / "log")
    runs = [tmp_path / "smoke" / f"{model}-56-s0" for model in ("plain", "residual")]
    survival.wait_until(lambda: all(survival.iteration_of(run) >= 1 for run in runs), "two runs")
    assert seconds_to_end(life, number, whole_group) < 2 * SOON
    assert life.wait() == STATUS[number], life.err
    assert "Traceback" not in life.err
    survival.wait_until(lambda: not lives_on(life.pid), "the end of all processes", SOON)
    for run in runs:
        check_interrupted(run)
