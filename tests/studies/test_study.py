import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import pytest
from omegaconf import OmegaConf

from resrepro.configuration.composition import compose, expand, split_words
from resrepro.configuration.schema import Config
from resrepro.data import load
from resrepro.errors import ConfigError, ResreproError
from resrepro.runs.run_directory import Row, RunDirectory, planned_seeds
from resrepro.studies import processes
from resrepro.studies.display import Display
from resrepro.studies.plan import OWN_KEYS, Plan, cost, plan_study
from resrepro.studies.processes import Shares, share_out
from resrepro.studies.study import run_study

Run = Callable[..., Any]
NAMES = [f"{model}-{depth}-s0" for model in ("plain", "residual") for depth in (8, 14)]
WORDS = ("reproduce", "study=smoke", "device=cpu", "threads=1", "recipe.iterations=6")


def test_words_about_the_study_are_told_from_those_of_its_runs(tmp_path: Path) -> None:
    words = ["study=digits", "seed=0,1", "jobs=2", "+tag=x", "hydra.verbose=true", "depth=8"]
    own, of_runs = split_words(words, OWN_KEYS)
    assert own == ["study=digits", "jobs=2", "hydra.verbose=true"]
    assert of_runs == ["seed=0,1", "+tag=x", "depth=8"]
    assert split_words(["--config-dir", str(tmp_path), "seed=1"], OWN_KEYS) == (
        ["--config-dir", str(tmp_path)],
        ["seed=1"],
    )


def test_jobs_are_checked() -> None:
    for jobs in (0, -1, "many", 1.5):
        composed = OmegaConf.create({"jobs": jobs, "study": {}})
        with pytest.raises(ConfigError, match=f"jobs={jobs}: must be "):
            plan_study(composed, [], None)


def test_a_malformed_study_is_refused() -> None:
    good = {"name": "x", "runs": ["depth=8"], "overrides": "data=digits", "artefacts": ["table6"]}
    for bad in ({"runs": 1}, {"artefacts": None}, {"overrides": 5}, {"artefacts": ["foo"]}):
        composed = OmegaConf.create({"jobs": None, "study": good | bad})
        with pytest.raises(ConfigError, match="study"):
            plan_study(composed, [], None)
    assert len(plan_study(OmegaConf.create({"jobs": None, "study": good}), [], None).runs) == 1


def test_a_run_costs_more_the_deeper_the_wider_and_the_longer(
    quick: Callable[..., Config],
) -> None:
    base = cost(quick())
    for words, factor in [("depth=20", 2.5), ("model.width=32", 4), ("recipe.batch_size=256", 2)]:
        assert cost(quick(words)) == pytest.approx(factor * base)
    assert cost(quick("recipe.iterations=500")) > 50 * base


def test_the_cores_are_shared_out(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    runs = [quick(f"seed={seed}") for seed in range(3)]
    assert share_out(runs, None) == Shares(["cpu"] * 3, 2)
    assert share_out(runs * 4, None) == Shares(["cpu"] * 8, 1)
    assert share_out(runs, 2) == Shares(["cpu"] * 2, 4)
    assert share_out(runs, 20) == Shares(["cpu"] * 20, 1)


def test_a_study_is_not_complete_for_data_it_never_saw(
    made_up_run: Callable[..., RunDirectory],
    rows: Callable[..., list[Row]],
    tmp_path: Path,
) -> None:
    words = ["data=digits", "recipe=digits", "depth=8,14", f"outputs={tmp_path}"]
    runs = expand("train", [words], None)
    digest = load(runs[0].data).digest
    for run in runs:
        made_up_run(run, rows(last=300), data_digest=digest)
    assert run_study(Plan("x", runs, [], 1)) == (0, 0)
    made_up_run(runs[1], rows(last=300), data_digest="d" * 64)
    with pytest.raises(ResreproError, match=r"residual-14-s0 was trained on other data"):
        run_study(Plan("x", runs, [], 1))


def test_a_study_records_how_many_seeds_it_plans(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "_train_all", lambda runs, *_: {run.name for run in runs})
    runs = expand("train", [["data=digits", "depth=8", f"outputs={tmp_path}"]], None)
    folder = tmp_path / runs[0].experiment
    run_study(Plan("x", runs, [], 1))
    assert planned_seeds(folder) is None
    run_study(Plan("x", runs, [], 1, seeds=5))
    assert planned_seeds(folder) == 5
    run_study(Plan("x", runs, [], 1, seeds=7))
    assert planned_seeds(folder) == 5


def test_a_study_of_which_no_run_could_be_trained_ends_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(runs: list[Config], _: Any, display: Display) -> set[str]:
        for run in runs:
            display.fail(run, "x: Read-only file system")
        return {run.name for run in runs}

    monkeypatch.setattr(processes, "_train_all", fail)
    runs = expand("train", [["data=digits", "depth=8,14", f"outputs={tmp_path}"]], None)
    with pytest.raises(ResreproError, match=r"^no run could be trained: x: Read-only file system$"):
        run_study(Plan("x", runs, [], 1))
    assert capsys.readouterr().out.count("Read-only") == 1


@pytest.mark.parametrize("name", ["digits", "figure1", "figure6", "table6"])
def test_the_studies_plan_seeds(name: str) -> None:
    (composed,) = compose("reproduce", [f"study={name}"])
    assert plan_study(composed, [], None).seeds == (10 if name == "digits" else 5)


@pytest.mark.parametrize("seeds", ["0", "many", "true", "2.5", "[1,2]"])
def test_planned_seeds_are_a_number(seeds: str) -> None:
    (composed,) = compose("reproduce", ["study=smoke", f"+study.seeds={seeds}"])
    with pytest.raises(ConfigError, match=r"study smoke: seeds=.*: must be 1 or more"):
        plan_study(composed, [], None)


def test_after_a_signal_no_waiting_run_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C reaches the runs too: one ends, and its place is free, before the study has looked."""
    begun: list[str] = []

    def train(_context: Any, run: Config, *_: Any) -> bool:
        begun.append(run.name)
        monkeypatch.setattr(processes.interruption, "is_requested", lambda: True)
        return True

    monkeypatch.setattr(processes, "_train_in_process", train)
    runs = expand("train", [["data=digits", "depth=8,14,20", f"outputs={tmp_path}"]], None)
    assert run_study(Plan("x", runs, [], 1)) == (3, 0)
    assert begun == ["residual-20-s0"]


def test_the_gpus_are_shared_out(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(
        "resrepro.studies.cards.shared_out", lambda run, _count, names: [run.name, *names]
    )
    runs = [quick(f"depth={depth}", "device=auto") for depth in (8, 20, 14)]
    assert share_out(runs, None).devices == ["residual-20-s0", "cuda:0", "cuda:1"]
    assert share_out(runs, 3) == Shares(["cuda:0", "cuda:1", "cuda:0"], None)
    named = [replace(run, device="cuda:1") for run in runs]
    assert share_out(named, None).devices == ["residual-20-s0", "cuda:1"]
    assert share_out(named, 2) == Shares(["cuda:1", "cuda:1"], None)
    assert share_out([replace(run, device="cpu") for run in runs], 2).devices == ["cpu"] * 2


def test_the_longest_runs_are_begun_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    def train(runs: list[Config], *_: Any) -> set[str]:
        begun.extend(run.depth for run in runs)
        return {run.name for run in runs}

    monkeypatch.setattr(processes, "_train_all", train)
    words = ["data=digits", "depth=14,56,8,20", f"outputs={tmp_path}"]
    runs = expand("train", [words], None)
    assert run_study(Plan("x", runs, [], 1)) == (4, 0)
    assert begun == [56, 20, 14, 8]
    out = capsys.readouterr().out
    assert "4 runs, 0 of them done, 1 at a time" in out
    assert [line.split()[0] for line in out.splitlines() if "waiting" in line] == [
        f"residual-{depth}-s0" for depth in (14, 56, 8, 20)
    ]


# The smoke study through the installed command


@pytest.fixture(scope="module")
def smoke(resrepro_in: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("smoke")
    return folder, resrepro_in(folder, *WORDS)


def tables(text: str) -> list[list[list[str]]]:
    """The printed tables, as lists of rows of cells."""
    blocks = re.findall(r"^-+(?:  -+)+\n((?:.+\n)+)", text, re.MULTILINE)
    return [[re.split(r"  +", line) for line in block.splitlines()] for block in blocks]


def test_a_study_makes_runs_table_and_figure(smoke: tuple[Path, Any]) -> None:
    folder, done = smoke
    assert (done.status, done.stderr) == (0, "")
    experiment = folder / "outputs/smoke"
    for name in NAMES:
        assert (experiment / name / "checkpoint.pt").stat().st_size > 100_000
        assert (
            len((experiment / name / "metrics.csv").read_text().splitlines()) == 3
        )  # header, 5, 6
    for form in ("png", "svg", "pdf"):
        assert (experiment / f"figures/figure6.{form}").stat().st_size > 5_000
    for form in ("md", "csv"):
        assert (experiment / f"tables/table6.{form}").stat().st_size > 200
    runs, errors = tables(done.stdout)
    assert [(row[0], row[1]) for row in runs] == [(name, "complete") for name in NAMES]
    assert [row[0] for row in errors] == ["plain-8", "plain-14", "ResNet-8", "ResNet-14"]
    assert "outputs/smoke/figures/figure6.png (SVG and PDF beside it)" in done.stdout.splitlines()
    for name in NAMES:
        assert re.search(
            rf"^{name}: iteration [56] of 6: train .*, test ", done.stdout, re.MULTILINE
        )


def test_a_study_again_trains_nothing_and_makes_the_same(
    smoke: tuple[Path, Any], resrepro_in: Run
) -> None:
    folder, first = smoke
    experiment = folder / "outputs/smoke"
    files = [
        experiment / name / file for name in NAMES for file in ("metrics.csv", "checkpoint.pt")
    ]
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    figure = (experiment / "figures/figure6.svg").read_bytes()
    again = resrepro_in(folder, *WORDS)
    assert (again.status, again.stderr) == (0, "")
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before
    assert (experiment / "figures/figure6.svg").read_bytes() == figure
    assert not re.search(r"begins|goes on|at a time", again.stdout)
    assert tables(again.stdout) == tables(first.stdout)


def test_a_study_trains_only_what_is_missing(
    smoke: tuple[Path, Any], resrepro_in: Run, tmp_path: Path
) -> None:
    shutil.copytree(smoke[0] / "outputs/smoke", tmp_path / "outputs/smoke")
    done = resrepro_in(tmp_path, *WORDS, "model=plain", "seed=0,1", "depth=8")
    assert (done.status, done.stderr) == (0, "")
    assert "2 runs, 1 of them done" in done.stdout
    assert re.findall(r"^(\S+) begins", done.stdout, re.MULTILINE) == ["plain-8-s1"]
    runs, errors = tables(done.stdout)
    assert [row[:2] for row in runs] == [["plain-8-s0", "complete"], ["plain-8-s1", "complete"]]
    (plain_8,) = [row for row in errors if row[0] == "plain-8"]
    assert plain_8[2] == "2"
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+", cell) for cell in plain_8[3:6])


def equal_but_for_seconds(one: Path, other: Path) -> bool:
    """Whether two experiments have the same rows and the same table."""
    rows = [
        [line.rpartition(",")[0] for line in (folder / name / "metrics.csv").read_text().split()]
        for folder in (one, other)
        for name in NAMES
    ]
    tables = [(folder / "tables/table6.csv").read_bytes() for folder in (one, other)]
    return rows[: len(NAMES)] == rows[len(NAMES) :] and tables[0] == tables[1]


def begun(experiment: Path) -> list[int]:
    """How often each run was begun."""
    return [(experiment / name / "train.log").read_text().count("begins") for name in NAMES]


def test_two_processes_share_a_study(smoke: tuple[Path, Any], start: Run, tmp_path: Path) -> None:
    both = [start(*WORDS), start(*WORDS)]
    outs = [process.communicate(timeout=240) for process in both]
    assert [(process.returncode, err) for process, (_, err) in zip(both, outs, strict=True)] == [
        (0, ""),
        (0, ""),
    ]
    experiment, alone = tmp_path / "outputs/smoke", smoke[0] / "outputs/smoke"
    assert begun(experiment) == [1] * 4
    assert equal_but_for_seconds(experiment, alone)
    for file in ("figures/figure6.svg", "figures/error-vs-depth.svg"):
        assert (experiment / file).read_bytes() == (alone / file).read_bytes()
    for out, _ in outs:
        assert [row[1] for row in tables(out)[0]] == ["complete"] * 4


@pytest.mark.skipif(
    not find_spec("hydra_plugins.hydra_joblib_launcher"), reason="needs the joblib extra"
)
def test_joblib_makes_the_same_with_two_runs_a_job(
    smoke: tuple[Path, Any], resrepro: Run, tmp_path: Path
) -> None:
    done = resrepro(*WORDS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "jobs=2")
    assert (done.status, done.stderr) == (0, "")
    assert "study smoke: 4 runs, 0 of them done, 2 jobs through joblib" in done.stdout
    assert begun(tmp_path / "outputs/smoke") == [1] * 4
    assert equal_but_for_seconds(tmp_path / "outputs/smoke", smoke[0] / "outputs/smoke")


def test_what_another_process_holds_is_left_to_it(
    smoke: tuple[Path, Any], resrepro_in: Run, tmp_path: Path
) -> None:
    shutil.copytree(smoke[0] / "outputs/smoke", tmp_path / "outputs/smoke")
    run = RunDirectory(tmp_path / "outputs/smoke/plain-14-s0")
    for file in run.path.iterdir():
        if file.name != "config.yaml":
            file.unlink()
    with run.locked():
        done = resrepro_in(tmp_path, *WORDS, "wait=false")
    assert (done.status, done.stderr) == (0, "")
    assert "1 of 4 runs go on without this command" in done.stdout
    assert not (run.path / "metrics.csv").exists()
    assert "at a time" not in done.stdout


def holder(run: Path) -> int:
    """The process that trains a run."""
    match = re.search(r"process (\d+)", (run / ".holder").read_text())
    assert match is not None
    return int(match[1])


def test_a_killed_process_harms_only_its_run(start: Run, tmp_path: Path) -> None:
    words = (*WORDS[:3], "recipe.iterations=40", "model.width=8", "jobs=2")
    process = start(*words)
    run = tmp_path / "outputs/smoke/plain-14-s0"
    end = time.monotonic() + 120
    while not (run / "summary.json").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    victim = holder(run)
    assert victim != process.pid
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err == "resrepro reproduce: 1 of 4 runs are not complete\n"
    assert "plain-14-s0: its process died of signal 9" in out
    states = {row[0]: row[1] for row in tables(out)[0]}
    assert states == {name: "killed" if "n-14" in name else "complete" for name in NAMES} | {
        "residual-14-s0": "complete"
    }


def test_what_processes_are_forked_from_has_not_touched_a_gpu() -> None:
    """A process forked after CUDA was asked for anything cannot use it."""
    program = f"""
import importlib, torch
def refuse(*args, **kwargs):
    raise AssertionError("a GPU was asked for")
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device"):
    setattr(torch.cuda, name, refuse)
for module in {processes.PRELOADED}:
    importlib.import_module(module)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_file_in_the_users_folder_is_not_taken_for_a_librarys(
    resrepro_in: Run, tmp_path: Path
) -> None:
    """Of fractions.py, which PyTorch imports, in the processes that a study starts."""
    (tmp_path / "fractions.py").write_text("raise RuntimeError('this is not the one')\n")
    done = resrepro_in(tmp_path, "reproduce", "study=smoke", "recipe.iterations=2", "model=plain")
    assert done.status == 0, done.stderr
