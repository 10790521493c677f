"""Runs that are killed end as unbroken ones: the same rows, weights, momentum and summary.

`RESREPRO_SOAK=KILLS` (scripts/soak) kills more often, at every file operation there is, and
through other launchers.
"""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import survival
from survival import TINY, Command, Moment, Nursery, kill, live_and_die, lives_on, outcome, unequal

NAME = "residual-8-s0"
SEEDS = range(4)


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    return survival.the_nursery()


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    Command.end_all()


@pytest.fixture(scope="module")
def unbroken(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The outcomes of unbroken runs of each seed, a process each."""
    outputs = tmp_path_factory.mktemp("unbroken")
    for seed in SEEDS:
        life = nursery.start(["train", *TINY, f"seed={seed}", f"outputs={outputs}"])
        assert life.wait() == 0, life.err
    return [outcome(outputs / "digits" / f"residual-8-s{seed}") for seed in SEEDS]


@pytest.fixture(scope="module")
def lifetime(
    nursery: Nursery, unbroken: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> float:
    """Seconds that an unbroken run takes here and now."""
    del unbroken  # so that all files were read once
    began = time.monotonic()
    assert nursery.start(train_words(tmp_path_factory.mktemp("lifetime"))).wait() == 0
    return time.monotonic() - began


def train_words(outputs: Path, *more: str) -> list[str]:
    return ["train", *more, *TINY, f"outputs={outputs}"]


def test_the_runs_compared_learn_and_differ_in_their_seeds(unbroken: list[dict[str, Any]]) -> None:
    first, second = unbroken[:2]
    assert first["summary.json status"] == "complete"
    assert first["checkpoint.pt iteration"] == 90
    assert not first["checkpoint.pt warming_up"]
    assert first["summary.json final_test_error"] < 85
    differing = {key for key in first if first[key] != second[key]}
    assert {
        "metrics.csv at 90",
        "checkpoint.pt conv.weight",
        "checkpoint.pt optimizer 0 momentum_buffer",
    } <= differing


def test_killed_at_random_moments(
    nursery: Nursery, unbroken: list[dict[str, Any]], lifetime: float, tmp_path: Path
) -> None:
    wanted, killed, runs = survival.thorough(6, max(30, survival.SOAK)), 0, 0
    span = (0.1 * lifetime, 0.9 * lifetime)
    while killed < wanted:
        outputs = tmp_path / str(runs)
        words = train_words(outputs)
        start = partial(nursery.start, words)
        killed += live_and_die(start, wanted - killed, span, seed=runs)
        life = start()
        assert life.wait() == 0, life.err
        assert unequal(outputs / "digits" / NAME, unbroken[0]) == []
        runs += 1
        survival.say(f"{killed} of {wanted} kills at random moments, {runs} runs, all equal")
        assert runs < 10 * wanted, "the runs end before they can be killed"


def test_the_installed_command_killed_at_random_moments(
    unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    words, log = train_words(tmp_path), tmp_path / "log"
    run, chance = tmp_path / "digits" / NAME, random.Random(1)
    wanted, killed = survival.thorough(1, max(30, survival.SOAK)), 0
    while killed < wanted:
        life, target = Command(words, log), survival.iteration_of(run)
        target += chance.randrange(1, 12)
        survival.wait_until(
            lambda life=life, target=target: (
                survival.iteration_of(run) >= target or not lives_on(life.pid)
            ),
            f"iteration {target}",
        )
        status = kill(life)
        if status == 0:  # it was too quick; another one
            assert unequal(run, unbroken[0]) == []
            shutil.rmtree(run)
        else:
            assert status == -signal.SIGKILL, life.err
            killed += 1
            survival.say(f"{killed} of {wanted} kills of the installed command")
    life = Command(words, log)
    assert life.wait() == 0, life.err
    assert unequal(run, unbroken[0]) == []


def test_killed_at_chosen_places(
    nursery: Nursery, unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    moments = [
        Moment("data", 1),
        Moment("iteration", 3),
        Moment("evaluation", 1),
        Moment("evaluation", 2),
        Moment("checkpoint", 1),
        Moment("checkpoint", 2),
        Moment("iteration", 11),
        Moment("evaluation", 3),
    ]
    run, words = tmp_path / "digits" / NAME, train_words(tmp_path)
    for moment in moments:
        life = nursery.start(words, moment)
        assert life.wait() == -signal.SIGKILL, f"{moment} did not come: {life.err}"
        assert survival.standing_of(run) in ("waiting", "killed"), moment
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken[0]) == []


@pytest.mark.parametrize("torn", [False, True])
def test_killed_at_any_file_operation(
    nursery: Nursery, unbroken: list[dict[str, Any]], tmp_path: Path, torn: bool
) -> None:
    """Ends a life before its Nth fsync or rename, and the next one, which restores it, too."""
    chance, killed = random.Random(torn), 0
    counts = range(1, 61) if survival.SOAK else chance.sample(range(1, 20), 2)
    for count in counts:
        outputs = tmp_path / str(count)
        run, words = outputs / "digits" / NAME, train_words(outputs)
        for operation in (count, chance.randrange(1, 25)):
            life = nursery.start(words, Moment("file", operation, torn=torn))
            if life.wait() == 0:  # a fast machine needs fewer: checkpoints go by time
                assert operation > 10, f"no operation {operation}"
                continue
            assert life.wait() == -signal.SIGKILL, life.err
            assert survival.standing_of(run) in ("waiting", "killed"), f"operation {operation}"
            killed += 1
        life = nursery.start(words)
        assert life.wait() == 0, f"operation {count}: {life.err}"
        assert unequal(run, unbroken[0]) == [], f"operation {count}"
        assert not list(run.glob(".*.partial")), "a half-written file is left"
        shutil.rmtree(outputs)
    assert killed >= len(counts)
    survival.say(f"{killed} kills at file operations, all runs equal")


@pytest.mark.parametrize("torn", [False, True])
def test_killed_in_the_write_of_a_checkpoint(
    nursery: Nursery, unbroken: list[dict[str, Any]], tmp_path: Path, torn: bool
) -> None:
    """Each step of the first checkpoint's write, and of those that replace one."""
    run, words = tmp_path / "digits" / NAME, train_words(tmp_path)
    kills = partials = 0
    for operation in range(1, survival.thorough(9, 30)):
        life = nursery.start(words, Moment("checkpoint file", operation, torn=torn))
        if (status := life.wait()) == 0 and operation > 8:
            break  # two checkpoints' writes are always there, a fast machine makes few more
        assert status == -signal.SIGKILL, f"no operation {operation}: {life.err}"
        kills += 1
        half_written = list(run.glob(".checkpoint.pt.*.partial"))
        if half_written:
            (partial_file,) = half_written  # that of the life before is swept away
            partials += 1
            sizes = [file.stat().st_size for file in run.glob("checkpoint*.pt")]
            assert not sizes or not torn or partial_file.stat().st_size < 0.9 * min(sizes)
        if survival.iteration_of(run) == 90:
            break
        assert survival.standing_of(run) == "killed"
    assert partials >= 2, "no life ended within the write of a checkpoint"
    survival.say(f"{kills} kills in the write of a checkpoint, {partials} with half a file")
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken[0]) == []


def test_a_damaged_checkpoint_then_killed_in_the_write_of_the_next(
    nursery: Nursery, unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The whole one that was fallen back to must outlive the writing of its successor."""
    words, half = train_words(tmp_path / "half"), tmp_path / "half" / "digits" / NAME
    assert nursery.start(words, Moment("checkpoint", 3)).wait() == -signal.SIGKILL
    damaged = bytearray((half / "checkpoint.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (half / "checkpoint.pt").write_bytes(damaged)
    for operation in survival.thorough_range((1, 2, 4), range(1, 9)):
        outputs = tmp_path / str(operation)
        shutil.copytree(tmp_path / "half", outputs)
        words = train_words(outputs)
        moment = Moment("checkpoint file", operation)
        assert nursery.start(words, moment).wait() == -signal.SIGKILL
        life = nursery.start(words)
        assert life.wait() == 0, f"operation {operation}: {life.err}"
        assert unequal(outputs / "digits" / NAME, unbroken[0]) == []


# Sweeps and studies


def check_sweep(outputs: Path, unbroken: list[dict[str, Any]]) -> None:
    for seed, wanted in enumerate(unbroken):
        assert unequal(outputs / "digits" / f"residual-8-s{seed}", wanted) == [], f"seed {seed}"


def test_a_killed_sweep(
    nursery: Nursery, unbroken: list[dict[str, Any]], lifetime: float, tmp_path: Path
) -> None:
    """Four runs in one process; one that is complete is left alone when the sweep starts again."""
    start = partial(nursery.start, train_words(tmp_path, "-m", "seed=0,1,2,3"))
    kills = survival.thorough(2, max(15, survival.SOAK // 2))
    span = (0.3 * lifetime, (0.5 + 8 / kills) * lifetime)
    killed = live_and_die(start, kills, span, seed=3)
    life = start()
    assert life.wait() == 0, life.err
    assert killed >= 2, "the sweep ended before it could be killed"
    check_sweep(tmp_path, unbroken)
    survival.say(f"a sweep of four killed {killed} times, all of its runs equal")


@pytest.mark.skipif(not survival.SOAK, reason="takes a minute: scripts/soak")
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_killed_sweep_on_several_processes(
    unbroken: list[dict[str, Any]], tmp_path: Path, whole_group: bool
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = train_words(
        tmp_path, "-m", "seed=0,1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"
    )
    for step in (15, 45):
        life = Command(words, tmp_path / "log")
        run = tmp_path / "digits" / NAME
        survival.wait_until(lambda run=run, step=step: survival.iteration_of(run) >= step, "a row")
        assert kill(life, whole_group=whole_group) == -signal.SIGKILL
    life = Command(words, tmp_path / "log")
    assert life.wait() == 0, life.err
    check_sweep(tmp_path, unbroken)
    survival.wait_until(lambda: not lives_on(life.pid), "the workers' end", 30)


# The study `smoke` with the numbers of TINY.
STUDY = ["reproduce", "study=smoke", "jobs=2", *TINY[3:]]


@pytest.fixture(scope="module")
def unbroken_study(
    nursery: Nursery, unbroken: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The outcomes of the study's runs, each trained by itself."""
    outputs, outcomes = tmp_path_factory.mktemp("unbroken-study"), {NAME: unbroken[0]}
    for model, depth in (("plain", 8), ("plain", 14), ("residual", 14)):
        words = ["train", *TINY, f"model={model}", f"depth={depth}", f"outputs={outputs}"]
        life = nursery.start(words)
        assert life.wait() == 0, life.err
        name = f"{model}-{depth}-s0"
        outcomes[name] = outcome(outputs / "digits" / name)
    return outcomes


@pytest.mark.skipif(not survival.SOAK, reason="takes a minute: scripts/soak")
def test_a_killed_study(unbroken_study: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Killed with all its processes, and alone: then its runs must notice by themselves."""
    words, experiment = [*STUDY, f"outputs={tmp_path}"], tmp_path / "smoke"
    chance, kills = random.Random(4), max(8, survival.SOAK // 4)
    for number in range(kills):
        target = done(experiment, unbroken_study) + chance.randrange(5, max(10, 300 // kills))
        life = Command(words, tmp_path / "log")
        survival.wait_until(
            lambda target=target, life=life: (
                done(experiment, unbroken_study) >= target or not lives_on(life.pid)
            ),
            f"{target} iterations in all",
        )
        status = kill(life, whole_group=number % 2 == 1)
        assert status == -signal.SIGKILL, f"it ended before it could be killed: {life.err}"
        # The next start waits for orphans; that they end is seen where it does not come at once.
        if number % 4 != 2:
            group = life.pid
            seconds = survival.wait_until(
                lambda group=group: not lives_on(group), "the orphans' end", 20
            )
            survival.say(f"kill {number + 1} of {kills}: all were gone after {seconds:.1f} s")
    life = Command(words, tmp_path / "log")
    assert life.wait() == 0, life.err
    for name, wanted in unbroken_study.items():
        assert unequal(experiment / name, wanted) == [], name
    survival.wait_until(lambda: not lives_on(life.pid), "the end of all processes", 20)
    assert (experiment / "figures" / "figure6.png").stat().st_size > 1000


def done(experiment: Path, runs: dict[str, Any]) -> int:
    return sum(max(0, survival.iteration_of(experiment / name)) for name in runs)
