"""A sweep through real engines, whose jobs are stopped and killed in mid-run, equals itself.

That one through joblib does is seen in studies/test_sweep.py.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from survival import SOAK, environment, outcome, unequal

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
NAMES = ["plain-8-s0", "plain-8-s1", "plain-8-s2"]
# Seconds of training, so that a job can be met in the middle of it.
SWEEP = (
    "data=digits",
    "recipe=digits",
    "model=plain",
    "depth=8",
    "seed=0,1,2",
    "model.width=4",
    "recipe.batch_size=32",
    "recipe.iterations=2000",
    "evaluate_every=200",
    "checkpoint_seconds=1",
    "device=cpu",
    "threads=1",
)
SLURM = (
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=null",
    "hydra.launcher.timeout_min=30",
)
RAY = ("hydra/launcher=ray", "hydra.launcher.ray.remote.num_gpus=0")
LAST_ROW = 9  # from here on a run may be complete before it can be stopped
PATIENCE = 600.0


def until(happened: Callable[[], Any], what: str) -> Any:
    """What it returns as soon as that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (result := happened()):
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.1)
    return result


def rows_of(run: Path) -> int:
    """How often it has been evaluated."""
    metrics = run / "metrics.csv"
    return len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0


class Sweep:
    """A sweep that goes on in the background, in a folder of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.words = folder, words
        self.runs = [folder / "outputs/digits" / name for name in NAMES]
        self.start()

    def start(self) -> None:
        """Starts the command, or starts it again."""
        with (self.folder / "output.txt").open("a") as output:
            self.process = subprocess.Popen(
                [BIN / "resrepro", "train", "-m", *SWEEP, *self.words],
                cwd=self.folder,
                env=environment(self.folder),
                stdout=output,
                stderr=output,
            )

    def wait(self) -> None:
        """Waits for its end."""
        status = self.process.wait(PATIENCE)
        assert status == 0, (self.folder / "output.txt").read_text()

    def until_under_way(self, runs: list[Path]) -> None:
        """Waits until each of the runs has been evaluated."""
        until(lambda: all(rows_of(run) for run in runs), "runs that are under way")

    def assert_equals(self, unbroken: Path) -> None:
        """Compares all of its runs with those of another folder, but for the seconds."""
        for run in self.runs:
            assert unequal(run, outcome(unbroken / "outputs/digits" / run.name)) == []

    def log(self, run: Path) -> str:
        """The run's train.log."""
        return (run / "train.log").read_text()


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """Starts a sweep; one that a test leaves behind is ended."""
    started: list[Sweep] = []

    def start(*words: str) -> Sweep:
        started.append(Sweep(tmp_path, *words))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same sweep in one process."""
    folder = tmp_path_factory.mktemp("basic")
    Sweep(folder).wait()
    return folder


# SLURM


def slurm(*words: str) -> str:
    """What a command of SLURM's prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def a_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A controller and a node of four CPUs on this machine."""
    lacking = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if lacking or os.geteuid() != 0:
        pytest.skip(f"a SLURM needs root and its programs; lacking: {', '.join(lacking) or 'root'}")
    # pytest's own folder is too long for a socket.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        script = [HERE / "slurm.sh", "start", folder]
        started = subprocess.run(script, check=False, capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        monkeypatch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        yield
        subprocess.run([HERE / "slurm.sh", "stop", folder], check=True)


def test_a_sweep_through_slurm(a_slurm: None, sweep: Callable[..., Sweep], unbroken: Path) -> None:
    """In mid-run one job is cancelled, the others make room; the same command again makes all."""
    through = sweep(*SLURM)
    through.until_under_way(through.runs)
    job = slurm("squeue", "-ho", "%i").split("_")[0]
    cancelled = next(run for run in through.runs if rows_of(run) < LAST_ROW)
    slurm("scancel", f"{job}_{through.runs.index(cancelled)}")
    slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")
    until(lambda: not slurm("squeue", "-ho", "%i"), "the end of all jobs")
    assert "interrupted" in through.log(cancelled)
    others = [run for run in through.runs if run != cancelled]
    assert all("is complete" in through.log(run) for run in others)
    went_on = [run for run in through.runs if "goes on from iteration" in through.log(run)]
    assert went_on
    assert cancelled not in went_on
    through.process.send_signal(signal.SIGINT)  # without accounting nobody tells it of the job
    assert through.process.wait(PATIENCE) == 130
    through.start()
    through.wait()
    assert "goes on from iteration" in through.log(cancelled)
    through.assert_equals(unbroken)


# Ray

RAY_NODE = (
    str(BIN / "ray"),
    "start",
    "--block",
    "--num-cpus=2",
    "--num-gpus=0",
    "--object-store-memory=78643200",
    "--disable-usage-stats",
)


@pytest.fixture
def a_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cluster of two nodes of two CPUs on this machine."""
    if not find_spec("ray"):
        pytest.skip("ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex * 2)
    monkeypatch.setenv("RESREPRO_DATA", str(tmp_path / "data-cache"))  # workers have a node's
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    nodes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        head = ["--head", f"--port={address.partition(':')[2]}", f"--temp-dir={folder}"]
        for place in ([*head, "--include-dashboard=false"], [f"--address={address}"]):
            said = tmp_path / f"node-{len(nodes)}.txt"
            with said.open("w") as output:
                started = subprocess.Popen([*RAY_NODE, *place], stdout=output, stderr=output)
            nodes.append(started)
            until(lambda said=said: "Ray runtime started" in said.read_text(), "a node of Ray's")
        yield
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(PATIENCE)


@pytest.mark.skipif(not SOAK, reason="Ray brings sixty packages: scripts/soak")
def test_a_sweep_through_ray(a_ray: None, sweep: Callable[..., Sweep], unbroken: Path) -> None:
    """One worker is killed in mid-run: Ray begins its job again, and it goes on."""
    through = sweep(*RAY)
    through.until_under_way(through.runs)
    victim = next(run for run in through.runs if rows_of(run) < LAST_ROW)
    os.kill(int((victim / ".holder").read_text().split()[1]), signal.SIGKILL)
    through.wait()
    assert "goes on from iteration" in through.log(victim)
    through.assert_equals(unbroken)
