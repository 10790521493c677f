"""What several tests share: the installed command, quick configurations and made-up runs."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from hypothesis import settings
from survival import COMMAND, environment, the_nursery

from resrepro import extension
from resrepro.cli import main
from resrepro.configuration.composition import expand
from resrepro.configuration.schema import Config
from resrepro.runs.run_directory import Row, RunDirectory

settings.register_profile("resrepro", deadline=None)
settings.load_profile("resrepro")

ROOT = Path(__file__).parents[1]
# Overrides that train within a second, with the same bits wherever the tests run.
QUICK = (
    "data=digits",
    "recipe=digits",
    "depth=8",
    "recipe.iterations=5",
    "device=cpu",
    "threads=1",
)


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of standard error."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, f"one line was expected on standard error:\n{self.stderr}"
        return lines[0]


@pytest.fixture(scope="session")
def resrepro_in() -> Callable[..., Done]:
    """Runs the command in a folder, as a fork of a process that has imported PyTorch."""

    def run(folder: Path, *words: str, timeout: float = 300) -> Done:
        life = the_nursery().start([*words], folder=folder, environment=environment(folder))
        return Done(life.wait(timeout), life.out, life.err)

    return run


@pytest.fixture
def resrepro(resrepro_in: Callable[..., Done], tmp_path: Path) -> Callable[..., Done]:
    """The same in the test's own folder."""

    def run(*words: str, timeout: float = 300) -> Done:
        return resrepro_in(tmp_path, *words, timeout=timeout)

    return run


@pytest.fixture
def nothing_stays_registered() -> Iterator[None]:
    """What extensions register in this process is forgotten after the test."""
    registry = extension._registry
    before = {name: dict(value) for name, value in vars(registry).items() if name != "loading"}
    repo = ConfigStore.instance().repo
    choices = {group: dict(repo[group]) for group in ("model", "data") if group in repo}
    yield
    for name, value in before.items():
        setattr(registry, name, value)
    for group in ("model", "data"):
        repo.pop(group, None)
    repo.update(choices)


@pytest.fixture
def resrepro_here(
    nothing_stays_registered: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Done]:
    """The same in this process."""

    def run(*words: str) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setenv("RESREPRO_DATA", str(tmp_path / "data-cache"))
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        status = main(list(words))
        return Done(status, *capsys.readouterr())

    return run


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Starts the installed command in the test's own folder; what still runs at the end dies."""
    started = []

    def run(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [COMMAND, *words],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, made of the files as they are now."""
    pytest.importorskip("setuptools", minversion="77")
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("src", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    words = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(made), str(source)]
    subprocess.run(words, check=True, capture_output=True)
    (file,) = made.iterdir()
    return file


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the wheel in it."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="session")
def quick_words() -> tuple[str, ...]:
    """Overrides for a run of a second."""
    return QUICK


@pytest.fixture(scope="session")
def quick_in() -> Callable[..., Config]:
    """Makes the configuration of a quick run in a folder, with more overrides."""

    def make(folder: Path, *overrides: str) -> Config:
        return replace(deepcopy(composed(overrides)), outputs=f"{folder}/outputs")

    return make


@pytest.fixture
def quick(quick_in: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """Makes the configuration of a quick run in the test's own folder, with more overrides."""
    return lambda *overrides: quick_in(tmp_path, *overrides)


@cache
def composed(overrides: tuple[str, ...]) -> Config:
    """A quick run's configuration; composing takes a tenth of a second."""
    return expand("train", [[*QUICK, *overrides]], None)[0]


@pytest.fixture
def made_up_run() -> Callable[..., RunDirectory]:
    """Writes the run directory of a configuration as if it had been trained."""

    def make(
        config: Config, rows: Sequence[Row], status: str = "complete", **more: Any
    ) -> RunDirectory:
        run = RunDirectory(config.directory)
        run.open(config)
        run.write_metrics(rows)
        summary = {
            "status": status,
            "reason": None if status in ("complete", "running") else f"was made {status}",
            "iteration": rows[-1].iteration if rows else 0,
            "iterations": config.recipe.iterations,
            "classes": 10,
            "train_images": 1438,
            "test_images": 359,
            "final_train_error": rows[-1].train_error if rows else None,
            "final_test_error": rows[-1].test_error if rows else None,
            "best_test_error": min((row.test_error for row in rows), default=None),
            "clean_train_error": rows[-1].train_error if status == "complete" else None,
            "parameters": 75_002,
            "images_per_second": 1000.0,
            "seconds": 60.0,
            "data_digest": "d" * 64,
        }
        run.write_summary(summary | more, rows)
        return run

    return make


@pytest.fixture
def rows() -> Callable[..., list[Row]]:
    """Makes the rows of a run that ends at given errors."""

    def make(train: float = 5.0, test: float = 10.0, last: int = 5, count: int = 5) -> list[Row]:
        return [
            Row(
                iteration=last * i // count,
                epoch=last * i / count / 11.25,
                learning_rate=0.02,
                train_loss=0.5 + 0.1 * (count - i),
                train_error=train + 3.0 * (count - i),
                test_loss=0.7 + 0.1 * (count - i),
                test_error=test + 2.0 * (count - i),
                seconds=float(i),
            )
            for i in range(1, count + 1)
        ]

    return make
