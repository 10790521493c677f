import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from resrepro.configuration.schema import Config
from resrepro.errors import ResreproError
from resrepro.progress import Watcher
from resrepro.runs.run_directory import RunDirectory
from resrepro.studies import sweep
from resrepro.training import trainer

Run = Callable[..., Any]
NAMES = [f"{model}-8-s{seed}" for model in ("plain", "residual") for seed in (0, 1)]
COMMAS = ("model=plain,residual", "seed=0,1")


@dataclass(frozen=True)
class Sweep:
    """A sweep of four runs that was trained by the installed command."""

    folder: Path
    words: tuple[str, ...]
    done: Any

    @property
    def runs(self) -> Path:
        return self.folder / "outputs/digits"


@pytest.fixture(scope="module")
def swept(
    resrepro_in: Run, quick_words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Sweep:
    folder = tmp_path_factory.mktemp("sweep")
    words = ("train", "-m", *quick_words, *COMMAS)
    return Sweep(folder, words, resrepro_in(folder, *words))


def table(text: str) -> dict[str, str]:
    """The rows of the table that was printed at the end, by run."""
    rows, _, _ = text[text.index("\nrun  ") + 1 :].partition("\n\n")
    return {line.split()[0]: line for line in rows.splitlines()[2:]}


def notes(text: str) -> list[str]:
    """What is said below the table."""
    return text[text.index("\nrun  ") + 1 :].partition("\n\n")[2].splitlines()


def states(text: str) -> dict[str, str]:
    """The table's state column, by run."""
    return {name: row.split()[1] for name, row in table(text).items()}


def numbers(run: Path) -> list[str]:
    return [line.rpartition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()]


def test_a_sweep_ends_with_a_table_of_all_runs(swept: Sweep) -> None:
    assert (swept.done.status, swept.done.stderr) == (0, "")
    assert states(swept.done.stdout) == dict.fromkeys(NAMES, "complete")
    assert notes(swept.done.stdout) == []
    for place, name in enumerate(NAMES, 1):
        assert f"\nrun {place} of 4, {name}: iteration 5 of 5: train " in swept.done.stdout
        row = table(swept.done.stdout)[name]
        summary = RunDirectory(swept.runs / name).summary()
        assert summary is not None
        assert f"{summary['final_train_error']:.2f}" in row
        assert f"{summary['final_test_error']:.2f}" in row


def test_a_sweep_leaves_only_run_directories(swept: Sweep) -> None:
    assert [path.name for path in swept.folder.iterdir()] == ["outputs"]
    visible = {p.name for p in swept.runs.iterdir() if not p.name.startswith(".")}
    assert visible <= {*NAMES, "plain-8-s2", "residual-8-s2"}
    assert visible >= set(NAMES)


def test_a_run_of_a_sweep_is_the_run_alone(swept: Sweep, quick: Callable[..., Config]) -> None:
    alone = quick("model=plain", "seed=1")
    trainer.train(alone, Watcher())
    assert numbers(swept.runs / "plain-8-s1") == numbers(alone.directory)


def test_the_same_sweep_again_trains_only_what_is_new(swept: Sweep, resrepro_in: Run) -> None:
    before = {name: (swept.runs / name / "metrics.csv").stat().st_mtime_ns for name in NAMES}
    again = resrepro_in(swept.folder, *swept.words, "seed=0,1,2")
    assert (again.status, again.stderr) == (0, "")
    new = ["plain-8-s2", "residual-8-s2"]
    assert states(again.stdout) == dict.fromkeys([*NAMES, *new], "complete")
    for name in NAMES:
        assert f"outputs/digits/{name} is complete already\n" in again.stdout
        assert (swept.runs / name / "metrics.csv").stat().st_mtime_ns == before[name]
    assert re.findall(r"^(\S+) begins", again.stdout, re.MULTILINE) == new


@pytest.mark.skipif(
    not find_spec("hydra_plugins.hydra_joblib_launcher"), reason="needs the joblib extra"
)
def test_joblib_trains_the_same_runs_several_at_a_time(
    swept: Sweep, resrepro: Run, quick_words: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = resrepro("train", "-m", *quick_words, *COMMAS, *words)
    assert (done.status, done.stderr) == (0, "")
    assert states(done.stdout) == dict.fromkeys(NAMES, "complete")
    for name in NAMES:
        assert numbers(tmp_path / "outputs/digits" / name) == numbers(swept.runs / name)


@pytest.mark.skipif(
    not find_spec("hydra_plugins.hydra_submitit_launcher"), reason="needs the slurm extra"
)
def test_a_launcher_that_cannot_be_had_is_an_error_in_a_line(
    resrepro_here: Run, quick_words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    done = resrepro_here("train", "-m", *quick_words, "seed=0,1", "hydra/launcher=slurm")
    assert done.status == 1
    why, last = done.stderr.splitlines()
    assert why.startswith('resrepro train: the launcher: Could not detect "srun"')
    assert last == "resrepro train: 2 of 2 runs are not complete"
    assert states(done.stdout) == dict.fromkeys(["residual-8-s0", "residual-8-s1"], "waiting")


def test_a_diverging_run_harms_no_other(
    resrepro: Run, quick_words: tuple[str, ...], tmp_path: Path
) -> None:
    rates = ("recipe.learning_rate=1e30,0.02", "tag=lr${recipe.learning_rate}")
    done = resrepro("train", "-m", *quick_words, *rates)
    assert done.status == 1
    bad, good = "residual-8-s0-lr1e+30", "residual-8-s0-lr0.02"
    assert states(done.stdout) == {bad: "diverged", good: "complete"}
    reason = r"the loss is not finite at iteration \d, learning rate 1e\+30"
    (note,) = notes(done.stdout)
    assert re.fullmatch(rf"{re.escape(bad)}: {reason}", note)
    assert " left" not in table(done.stdout)[bad]
    first, last = done.stderr.splitlines()
    assert re.fullmatch(rf"{re.escape(bad)}: {reason}", first)
    assert last == "resrepro train: 1 of 2 runs are not complete"
    written = yaml.safe_load((tmp_path / "outputs/digits" / good / "config.yaml").read_text())
    assert written["recipe"]["learning_rate"] == 0.02


def test_a_run_that_fails_in_any_way_harms_no_other(
    quick_words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = trainer.train

    def fail_for_seed_0(config: Config, watcher: Watcher) -> Any:
        def fail(_: object) -> None:
            raise RuntimeError("out of memory:\ntried to allocate 1 TiB")

        return train(config, Watcher(fail) if config.seed == 0 else watcher)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(trainer, "train", fail_for_seed_0)
    assert sweep.train_sweep(["-m", *quick_words, "seed=0,1"]) == 1
    out, err = capsys.readouterr()
    assert states(out) == {"residual-8-s0": "failed", "residual-8-s1": "complete"}
    assert notes(out) == ["residual-8-s0: out of memory: tried to allocate 1 TiB"]
    assert "residual-8-s0: out of memory: tried to allocate 1 TiB" in err.splitlines()
    assert "Traceback" not in err


def test_the_same_failure_is_told_once(
    resrepro_here: Run, quick_words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ResreproError("the data are not there")

    monkeypatch.setattr(trainer, "load", fail)
    done = resrepro_here("train", "-m", *quick_words, "seed=0,1,2,3,4,5")
    assert done.status == 1
    assert done.stderr.splitlines() == [
        "residual-8-s0: the data are not there",
        "resrepro train: 6 of 6 runs are not complete",
    ]
    assert done.stdout.count("the data are not") == 1
    assert len(table(done.stdout)) == 6
    assert notes(done.stdout) == [
        "residual-8-s0, residual-8-s1, residual-8-s2 and 3 more: the data are not there"
    ]
