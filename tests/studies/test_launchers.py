"""A study through launchers; tests/cluster has them on a SLURM and a Ray cluster."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from resrepro.configuration import composition
from resrepro.runs.run_directory import RunDirectory

Run = Callable[..., Any]
WORDS = ("reproduce", "study=smoke", "device=cpu", "threads=1", "recipe.iterations=6")
GATED = Path(__file__).parents[2] / "examples/gated.py"

needs_joblib = pytest.mark.skipif(
    not find_spec("hydra_plugins.hydra_joblib_launcher"), reason="needs the joblib extra"
)
needs_submitit = pytest.mark.skipif(
    not find_spec("hydra_plugins.hydra_submitit_launcher"), reason="needs the slurm extra"
)


def launcher(name: str) -> Any:
    words = [f"hydra/launcher={name}"]
    return composition.launcher_config("reproduce", words, Path("x/.sweep")).hydra.launcher


@pytest.mark.parametrize("command", ["reproduce", "train"])
@pytest.mark.parametrize("extra", composition.EXTRAS)
def test_a_launcher_that_is_not_installed_is_named(
    resrepro_here: Run, monkeypatch: pytest.MonkeyPatch, command: str, extra: str
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(composition, "version", missing)
    done = resrepro_here(command, f"hydra/launcher={extra}")
    assert (done.status, done.stdout) == (2, "")
    assert done.error == (
        f"resrepro {command}: hydra/launcher={extra}: needs an extra: "
        f"pip install 'resrepro[{extra}]'"
    )


@needs_submitit
def test_slurm_asks_for_a_gpu_and_requeues() -> None:
    slurm = launcher("slurm")
    assert slurm._target_.endswith(".SlurmLauncher")
    assert slurm.submitit_folder == "x/.sweep/%j"
    assert (slurm.gpus_per_node, slurm.additional_parameters.requeue) == (1, True)
    assert slurm.partition is None  # submitit's own keys are there


@pytest.mark.skipif(not find_spec("hydra_plugins.hydra_ray_launcher"), reason="needs the ray extra")
def test_ray_asks_for_a_gpu_and_tries_again() -> None:
    assert launcher("ray").ray.remote == {"num_cpus": 1, "num_gpus": 1, "max_retries": -1}


@needs_joblib
def test_joblib_cannot_be_left_alone(resrepro_here: Run) -> None:
    done = resrepro_here(*WORDS, "hydra/launcher=joblib", "wait=false")
    assert done.status == 2
    assert "wait=false: hydra/launcher=joblib ends with the command" in done.error


@needs_submitit
def test_a_machine_without_slurm_is_told(
    resrepro_here: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    done = resrepro_here(*WORDS, "hydra/launcher=slurm")
    assert done.status == 1
    assert done.error.startswith(
        'resrepro reproduce: hydra/launcher=slurm: Could not detect "srun"'
    )
    assert not list(tmp_path.glob("outputs/smoke/*/config.yaml"))


@needs_submitit
def test_jobs_go_on_without_the_command_and_know_extensions(
    resrepro_here: Run, tmp_path: Path
) -> None:
    words = (*WORDS, "--extension", str(GATED), "model=gated", "depth=8")
    launch = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    done = resrepro_here(*words, *launch, "wait=false")
    assert (done.status, done.stderr) == (0, "")
    assert "1 of 1 runs go on without this command" in done.stdout
    again = resrepro_here(*words, *launch)
    assert (again.status, again.stderr) == (0, "")
    assert "outputs/smoke/tables/table6.md" in again.stdout
    run = tmp_path / "outputs/smoke/gated-8-s0"
    assert (run / "train.log").read_text().count("begins") == 1
    assert RunDirectory(run).config().extensions is not None
