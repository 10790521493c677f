import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from resrepro import __version__
from resrepro.cli import COMMANDS
from resrepro.configuration.schema import Config
from resrepro.runs.run_directory import Row, RunDirectory

Run = Callable[..., Any]
COMMAND = Path(sys.executable).with_name("resrepro")


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Help


def test_help_lists_every_command_with_a_line(resrepro: Run) -> None:
    for words in (["--help"], ["-h"], []):
        done = resrepro(*words)
        assert (done.status, done.stderr) == (0, "")
        for name in COMMANDS:
            assert re.search(rf"^  {name} +\w.{{10,}}$", done.stdout, re.MULTILINE)
    assert set(COMMANDS) >= {"train", "reproduce", "plot", "status", "data"}


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([COMMAND, "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_is_its_own(command: str, resrepro: Run) -> None:
    done = resrepro(command, "--help")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(f"resrepro {command}: ")
    assert f"resrepro {command} " in done.stdout
    assert not re.search(r"\bcli\b", done.stdout, re.IGNORECASE)


def test_help_of_train_shows_keys_and_choices(resrepro: Run) -> None:
    text = resrepro("train", "--help").stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in ("model=residual plain, residual", "depth=20 weighted layers, 6n+2"):
        assert line in lines
    assert "recipe.iterations=64000" in text
    assert "study" not in text


def test_a_reader_that_is_gone_is_no_error() -> None:
    for words in (["--help"], ["train", "--help"]):  # less and more than a pipe's buffer takes
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [COMMAND, *words], stdout=writing, stderr=subprocess.PIPE, check=False
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_version(resrepro: Run) -> None:
    assert resrepro("--version").stdout == f"resrepro {__version__}\n"


def test_it_runs_as_a_module_too(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "resrepro", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"resrepro {__version__}\n"


def test_showing_a_configuration_trains_nothing(resrepro: Run, tmp_path: Path) -> None:
    done = resrepro("train", "--cfg", "job", "depth=56", "recipe=digits")
    assert (done.status, done.stderr) == (0, "")
    assert "depth: 56\n" in done.stdout
    assert "  learning_rate: 0.02\n" in done.stdout
    assert contents(tmp_path) == []


# What is wrong with the words is one line and status 2, and nothing is written

TRAIN = ("train", "data=digits", "recipe=digits")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["foo"], r"^resrepro foo: there is no command foo; choose one of train, .*bench$"),
        (["--foo"], r"there is no command --foo"),
        ([*TRAIN, "depth=21"], r"^resrepro train: depth=21: .*6n\+2.* the nearest is 20$"),
        ([*TRAIN, "model=foo"], r"model=foo: .*plain, residual$"),
        ([*TRAIN, "model=residul"], r"model=residul: .*did you mean residual\? "),
        (["tain"], r"there is no command tain; did you mean train\? "),
        ([*TRAIN, "foo=1"], r"^resrepro train: foo is no key of resrepro train"),
        ([*TRAIN, "recipe.foo=1"], r"recipe\.foo is no key of resrepro train"),
        ([*TRAIN, "recipe.iterations=-5"], r"recipe\.iterations=-5: must be 1 or more$"),
        ([*TRAIN, "recipe.iterations=foo"], r"recipe\.iterations=foo: must be a whole number$"),
        ([*TRAIN, "recipe.drops=${depth}"], r"recipe\.drops"),
        ([*TRAIN, "device=foo"], r"device=foo: must be auto, cpu, cuda or cuda:N$"),
        ([*TRAIN, f"depth={10**400}"], r"depth=1000"),
        ([*TRAIN, "tag=a/b"], r"tag=a/b"),
        ([*TRAIN, "model=plain", "model.shortcut=A"], r"model\.shortcut"),
        (["train", "data=image_folder"], r"data\.root is not given: .*data\.root=DIR$"),
        (
            ["train", "data=image_folder", "data.root=absent"],
            r"data\.root=absent: there is no such folder$",
        ),
        ([*TRAIN, "=3"], r"=3"),
        ([*TRAIN, "depth"], r"depth: say key=value"),
        ([*TRAIN, "~depth"], r"~depth: a key cannot be taken away; say depth=VALUE$"),
        ([*TRAIN, "tag=ünï"], r"tag=ünï: is part of a folder's name"),
        ([*TRAIN, "outputs="], r"outputs=: is empty; name a path"),
        ([*TRAIN, "depth=${foo}"], r"depth=\$\{foo\}: has no value here"),
        ([*TRAIN, "depth=${"], r"depth=.*: has no value here"),
        ([*TRAIN, "lr=0.1"], r"lr is no key of .*did you mean recipe\.learning_rate\?"),
        ([*TRAIN, "recipe.lr=0.1"], r"did you mean recipe\.learning_rate\?"),
        ([*TRAIN, "recipe.drops=0.5"], r"recipe\.drops=0\.5: must be a list of numbers"),
        ([*TRAIN, "recipe.warm_up=3"], r"recipe\.warm_up=3: must be a group of keys: "),
        ([*TRAIN, "seed=null"], r"seed=null: must be a whole number$"),
        (["plot", "experiment="], r"experiment=: is empty; name an experiment's folder$"),
        ([*TRAIN, "tag='???'"], r"tag is not given$"),
        (["status", "outputs='???'"], r"outputs is not given$"),
        ([*TRAIN, "+foo=1"], r"foo: there is no such key; --help lists those there are$"),
        ([*TRAIN, "+seed=1"], r"\+seed=1: say it without the \+$"),
        (["train", "data.image_size=100000"], r"data\.image_size=100000: must be 1024 or less$"),
        (["train", "-m", "data=digits", "seed=interval(0,1)"], r"list them: seed=A,B$"),
        (["train", "-m", "data=digits", "seed=range(1000000000)"], r"more than 10,000 runs$"),
        ([*TRAIN, "--cfg", "nothing"], r"--cfg nothing: must be job, hydra or all$"),
        ([*TRAIN, "--foo"], r"--foo: there is no such flag; there are --help, -m, "),
        ([*TRAIN, "depth=8,14"], r"depth=8,14: .*-m "),
        ([*TRAIN, "--config-dir", "absent"], r"absent"),
        (["train", "-m", "data=digits", "depth=8,21"], r"depth=21"),
        (
            ["train", "-m", "data=digits", "hydra/launcher=foo", "seed=0,1"],
            r"hydra/launcher=foo: .*basic",
        ),
        (
            ["train", "-m", "data=digits", "recipe.learning_rate=0.1,0.05"],
            r"two runs would share outputs/digits/residual-20-s0 .*"
            r"'tag=learning_rate\$\{recipe\.learning_rate\}'$",
        ),
        (["reproduce", "study=foo"], r"study=foo: there is no such study; .*digits.*smoke"),
        (["reproduce", "study=smoke", "depth=9"], r"depth=9"),
        (["reproduce", "stdy=smoke"], r"did you mean study\?"),
        (["reproduce", "study=smoke", "study.runs=[]"], r"study smoke: has no runs"),
        (
            ["reproduce", "study=smoke", "study.runs=depth"],
            r"runs .*\(lists\).*: runs=depth is none$",
        ),
        (["reproduce", "study=smoke", "study.artefacts=[a]"], r"no artefact a; choose among "),
        (["reproduce", "study=smoke", "jobs=1.5"], r"jobs=1\.5: must be a whole number$"),
        (["reproduce", "study=smoke", "foo=1"], r"foo is no key"),
        (["reproduce", "study=smoke", "jobs=0"], r"jobs=0: must be 1 or more$"),
        (["reproduce", "--foo"], r"--foo"),
        (["plot", "foo=1"], r"foo is no key of resrepro plot"),
        (["plot", "--foo"], r"--foo: there is no such flag; there are --help, -m, "),
        (["status", "--foo"], r"--foo: there is no such flag; there are --help, -m, "),
        (
            ["data", "data=foo"],
            r"data=foo: .*cifar10, cifar100, digits, image_folder, torchvision$",
        ),
        (["data", "--foo"], r"--foo: there is no such flag; there are --help, -m, "),
        (["construct", "depth=56"], r"run is not given"),
        (["construct", "depth=56", "run=absent"], r"run=absent: there is no run; "),
        (["bench", "image_size=8,100000"], r"image_size=8,100000: must be from 8 to 1024"),
        (["plot", "figure=figure1,figure9"], r"figure=figure9: there is no such figure; "),
        (["plot", "-m", "figure=figure1,figure6"], r"commas do without it here$"),
        (["report", "--foo"], r"--foo: there is no such flag; there are --help, -m, "),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_wrong_words(words: list[str], message: str, resrepro_here: Run, tmp_path: Path) -> None:
    done = resrepro_here(*words)
    assert re.search(message, done.error)
    assert done.error.startswith(f"resrepro {words[0]}: ")
    assert done.status == 2
    assert done.stdout == ""
    assert contents(tmp_path) == []


def test_a_flag_may_stand_between_overrides(resrepro: Run) -> None:
    done = resrepro("train", "data=digits", "--cfg", "job", "depth=32")
    assert (done.status, done.stderr) == (0, "")
    assert "depth: 32\n" in done.stdout
    done = resrepro("train", "data=digits", "-m", "depth=8,21")
    assert done.status == 2
    assert "depth=21" in done.error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_machine_without_gpu(resrepro: Run) -> None:
    done = resrepro(*TRAIN, "depth=8", "device=cuda")
    assert done.status == 2
    assert re.search(r"^resrepro train: device=cuda: .*device=cpu", done.error)


def test_a_figure_that_there_is_not(resrepro_here: Run) -> None:
    done = resrepro_here("plot", "figure=figure9")
    assert done.status == 2
    assert re.search(r"^resrepro plot: figure=figure9: .*figure1, figure6, figure7$", done.error)


# What else can fail is one line and status 1


def test_an_experiment_with_no_runs(resrepro: Run, resrepro_here: Run, tmp_path: Path) -> None:
    done = [resrepro("status", "experiment=absent")]
    done += [resrepro_here(command, "experiment=absent") for command in ("plot", "report")]
    for end in done:
        assert end.status == 1
        assert re.search(r"no runs in outputs/absent; .*resrepro train", end.error)
    assert contents(tmp_path) == []


def test_no_experiment_at_all(resrepro_here: Run, tmp_path: Path) -> None:
    assert re.search("no runs", resrepro_here("plot").error)
    done = resrepro_here("status", "outputs=elsewhere")
    assert done.status == 1
    assert re.search(r"no runs in .*elsewhere", done.error)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_outputs_that_cannot_be_written(sweep: list[str], resrepro: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = resrepro("train", *sweep, "data=digits", "depth=8", "outputs=file/below")
    assert done.status == 1
    assert re.search(r"file/below.*: Not a directory$", done.error)
    assert (tmp_path / "file").read_text() == "not a folder"
    assert contents(tmp_path) == ["file"]


def test_figures_that_cannot_be_written(
    resrepro_here: Run, quick: Callable[..., Config], made_up_run: Run, rows: Run, tmp_path: Path
) -> None:
    made_up_run(quick(), rows())
    (tmp_path / "outputs/digits/figures").write_text("not a folder")
    done = resrepro_here("plot")
    assert done.status == 1
    assert "outputs/digits/figures" in done.error


def test_a_run_that_never_trained_gives_way_to_the_corrected_command(
    resrepro_here: Run, tmp_path: Path, quick_words: tuple[str, ...]
) -> None:
    """The advice of a refusal is not refused in its turn."""
    for place, side in (("train/a/0", 8), ("train/b/0", 9), ("test/a/0", 8), ("test/b/0", 8)):
        file = tmp_path / "images" / f"{place}.png"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (side, side)).save(file)
    words = ("train", *quick_words, "data=image_folder", "data.root=images", "recipe.batch_size=4")
    first = resrepro_here(*words)
    assert first.status == 1
    assert "give one size to all with data.image_size=N" in first.error
    second = resrepro_here(*words, "data.image_size=8")
    assert (second.status, second.stderr) == (0, "")
    third = resrepro_here(*words)  # it has trained now, and is protected
    assert third.status == 2
    assert "data.image_size 8, here None" in third.error


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model=[plain,residual]"], r"model takes one name; -m model=A,B takes several"),
        (["-m", "model=[plain,residual]"], "model takes one name"),
        (["recipe={iterations:2}"], r"recipe takes one name; recipe\.KEY=VALUE changes"),
        (["-m", "seed=glob(*)"], "these words make no run"),
    ],
)
def test_lists_are_not_silently_reduced(words: list[str], line: str, resrepro_here: Run) -> None:
    done = resrepro_here("train", "data=digits", *words)
    assert done.status == 2
    assert re.search(line, done.error)


def test_the_run_directory_of_another_configuration(
    resrepro_here: Run,
    quick: Callable[..., Config],
    quick_words: tuple[str, ...],
    made_up_run: Callable[..., RunDirectory],
    rows: Callable[..., list[Row]],
) -> None:
    config = quick()
    made_up_run(config, rows())
    before = contents(config.directory)
    done = resrepro_here("train", *quick_words, "recipe.learning_rate=0.5", "seed=0")
    assert done.status == 2
    assert re.search(r"recipe\.learning_rate 0\.02, here 0\.5\).*tag=WORD", done.error)
    assert contents(config.directory) == before


def test_a_run_that_is_being_trained(
    resrepro_here: Run, quick: Callable[..., Config], quick_words: tuple[str, ...]
) -> None:
    run = RunDirectory(quick().directory)
    run.open(quick())
    with run.locked():
        done = resrepro_here("train", *quick_words)
    assert done.status == 1
    assert re.search(rf"residual-8-s0 is being trained by process {os.getpid()} on ", done.error)


def test_a_damaged_run_names_its_file(
    resrepro_here: Run, quick: Callable[..., Config], made_up_run: Run, rows: Run
) -> None:
    run = made_up_run(quick(), rows())
    (run.path / "summary.json").write_text("{}")
    done = resrepro_here("plot", "experiment=digits")
    assert done.status == 1
    assert re.search(r"residual-8-s0/summary\.json is damaged", done.error)


def test_help_is_shown_where_letters_are_few(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    for command in ("train", "reproduce", "data"):
        words = [COMMAND, command, "--help"]
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_standard_streams_may_be_closed(tmp_path: Path) -> None:
    """As some daemons start what they run."""
    command = shlex.join([str(COMMAND), *TRAIN, "recipe.iterations=3", f"outputs={tmp_path}"])
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f"{command} seed={len(closed)} {closed}"], check=False)
        assert done.returncode == 0, closed
    assert len(list(tmp_path.glob("digits/*/summary.json"))) == 3


def test_the_whole_error_can_be_asked_for(tmp_path: Path) -> None:
    env = os.environ | {"HYDRA_FULL_ERROR": "1"}
    words = [COMMAND, *TRAIN, "depth=21"]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr
    assert "depth=21" in done.stderr


# A whole run


@pytest.fixture(scope="module")
def trained(
    resrepro_in: Run, quick_words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("trained")
    done = resrepro_in(folder, "train", *quick_words, "recipe.iterations=50", "depth=14", "seed=3")
    return folder, done


def test_train_leaves_a_run_directory(trained: tuple[Path, Any]) -> None:
    folder, done = trained
    assert (done.status, done.stderr) == (0, "")
    files = contents(folder / "outputs/digits/residual-14-s3")
    promised = {"config.yaml", "metrics.csv", "summary.json", "checkpoint.pt", "train.log"}
    assert promised <= set(files)
    assert not any("partial" in file or "tmp" in file for file in files)
    assert sorted(path.name for path in folder.iterdir()) == ["outputs"]


def test_without_a_terminal_progress_is_a_few_lines(trained: tuple[Path, Any]) -> None:
    lines = trained[1].stdout.splitlines()
    assert "\r" not in trained[1].stdout
    assert 5 <= len(lines) <= 15
    assert re.match(r"residual-14-s3 begins: 172,218 parameters, 50 iterations", lines[0])
    assert re.match(
        r"residual-14-s3: iteration \d+ of 50: train [\d.]+%, test [\d.]+%, [\d,]+ images/s$",
        lines[-2],
    )
    assert re.match(
        r"residual-14-s3 is complete: final training error [\d.]+%, test error [\d.]+%", lines[-1]
    )
    log = (trained[0] / "outputs/digits/residual-14-s3/train.log").read_text()
    assert lines[0] in log
    assert lines[-1] in log


def test_the_same_command_again_says_that_it_is_complete(
    trained: tuple[Path, Any], resrepro_in: Run, quick_words: tuple[str, ...]
) -> None:
    words = ("train", *quick_words, "recipe.iterations=50", "depth=14", "seed=3")
    again = resrepro_in(trained[0], *words)
    assert (again.status, again.stderr) == (0, "")
    assert again.stdout == "outputs/digits/residual-14-s3 is complete already\n"


def test_status_shows_the_run(trained: tuple[Path, Any], resrepro_in: Run) -> None:
    for words in (["status"], ["status", "experiment=digits"], ["status", "outputs=outputs"]):
        done = resrepro_in(trained[0], *words)
        assert (done.status, done.stderr) == (0, "")
        assert re.search(r"^residual-14-s3 +complete +50 / 50 ", done.stdout, re.MULTILINE)


def test_plot_names_its_figure(trained: tuple[Path, Any], resrepro_in: Run) -> None:
    done = resrepro_in(trained[0], "plot", "experiment=digits")
    assert (done.status, done.stderr) == (0, "")
    assert "outputs/digits/figures/figure6.png (SVG and PDF beside it)" in done.stdout
    for form in ("png", "svg", "pdf"):
        assert (trained[0] / f"outputs/digits/figures/figure6.{form}").stat().st_size > 5000


def test_data_describes_the_data_set(resrepro: Run, tmp_path: Path) -> None:
    done = resrepro("data", "data=digits")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith("1,438 training and 359 test images of 8x8 pixels in 1 channel")
    assert contents(tmp_path) == []
