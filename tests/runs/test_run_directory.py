import csv
import errno
import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError, Locked, ResreproError
from resrepro.files import write_atomically
from resrepro.progress import Watcher
from resrepro.runs.run_directory import (
    Row,
    RunDirectory,
    _seal,
    find_experiments,
    find_runs,
    natural,
)
from resrepro.runs.status import run_status
from resrepro.training.trainer import train

ROWS = [
    Row(5, 0.4, 0.02, 2.3025850929940455, 89.84375, 2.25, 100 / 3, 0.125),
    Row(10, 0.8, 0.02, 1.1, 45.0, 1.0, 33.0, 0.25),
    Row(15, 1.2, 0.002, 0.5, 12.5, 0.75, 1e-17, 0.375),
]


@pytest.fixture
def run(quick: Callable[..., Config], made_up_run: Callable[..., RunDirectory]) -> RunDirectory:
    return made_up_run(quick("recipe.iterations=15"), ROWS)


def fresh(run: RunDirectory) -> RunDirectory:
    """The same directory as another process sees it."""
    return RunDirectory(run.path)


# Round trips and formats


def test_metrics_csv_has_the_promised_columns_in_full_precision(run: RunDirectory) -> None:
    with (run.path / "metrics.csv").open() as file:
        header, *lines = csv.reader(file)
    assert ",".join(header) == (
        "iteration,epoch,learning_rate,train_loss,train_error,test_loss,test_error,seconds"
    )
    assert [[float(value) for value in line] for line in lines] == [
        list(vars(row).values()) for row in ROWS
    ]
    assert lines[0][0] == "5"


def test_metrics_and_summary_read_back_as_written(run: RunDirectory) -> None:
    assert fresh(run).metrics() == ROWS
    summary = fresh(run).summary()
    assert summary is not None
    assert summary["status"] == "complete"
    assert summary["final_test_error"] == 1e-17
    on_disk = json.loads((run.path / "summary.json").read_text())
    assert on_disk.items() >= summary.items()


def test_config_yaml_is_the_configuration(run: RunDirectory, quick: Callable[..., Config]) -> None:
    assert fresh(run).config() == quick("recipe.iterations=15")
    written = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (written["depth"], written["recipe"]["iterations"]) == (8, 15)


def test_a_run_that_has_not_begun_has_no_summary_and_no_metrics(
    quick: Callable[..., Config],
) -> None:
    run = RunDirectory(quick().directory)
    assert not run.exists()
    run.open(quick())
    assert run.exists()
    assert run.summary() is None
    assert run.metrics() == []
    assert run.load_checkpoint(quick()) == (None, None)


def test_rows_written_after_the_summary_are_not_yet_part_of_the_run(run: RunDirectory) -> None:
    run.write_metrics([*ROWS, Row(20, 1.6, 0.002, 0.4, 10.0, 0.7, 9.0, 0.5)])
    assert fresh(run).metrics() == ROWS


@pytest.mark.parametrize(
    "rows", [ROWS[:-1], [*ROWS, Row(20, 1.6, 0.002, 0.4, 10.0, 0.7, 9.0, 0.5)]]
)
def test_the_results_are_whole_between_the_writes_of_their_two_files(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, rows: list[Row]
) -> None:
    """Whether the rows shrink or grow."""
    done = []

    def once(file: Path, content: bytes) -> None:
        if done:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        done.append(file)
        write_atomically(file, content)

    monkeypatch.setattr("resrepro.runs.run_directory.write_atomically", once)
    with pytest.raises(OSError, match="No space"):
        run.write_results({"status": "running"}, rows)
    assert fresh(run).metrics() in (ROWS, rows)
    monkeypatch.undo()
    run.write_results({"status": "running"}, rows)
    assert fresh(run).metrics() == rows


def test_another_configuration_is_refused_naming_the_keys(
    run: RunDirectory, quick: Callable[..., Config]
) -> None:
    other = quick("recipe.iterations=16", "recipe.momentum=0.8")
    words = r"iterations 15, here 16.*momentum 0\.9, here 0\.8.*tag=WORD"
    with pytest.raises(ConfigError, match=words):
        fresh(run).open(other)
    fresh(run).open(quick("recipe.iterations=15", "threads=2"))
    assert fresh(run).config().recipe.iterations == 15


# Damage


@pytest.mark.parametrize("row", [1, 2, 3])
def test_a_flipped_digit_in_any_row_is_noticed(run: RunDirectory, row: int) -> None:
    file = run.path / "metrics.csv"
    lines = file.read_text().splitlines()
    digit = re.search(r"[1-8](?=\.)", lines[row].split(",", 3)[3])
    assert digit is not None
    at = lines[row].index(lines[row].split(",", 3)[3]) + digit.start()
    lines[row] = lines[row][:at] + str(int(lines[row][at]) + 1) + lines[row][at + 1 :]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ResreproError, match=r"metrics\.csv is damaged"):
        fresh(run).metrics()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_a_file_gives_other_numbers(run: RunDirectory, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["metrics.csv", "summary.json"]))
    pristine = (run.path / name).read_bytes()
    content = bytearray(pristine)
    kind = data.draw(st.sampled_from(["flip", "cut", "append", "insert"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[at:]
    elif kind == "append":
        content += data.draw(st.binary(min_size=1, max_size=4))
    else:
        content[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    (run.path / name).write_bytes(content)
    rows, status = ROWS, "complete"
    try:
        rows, status = fresh(run).metrics(), (fresh(run).summary() or {})["status"]
    except ResreproError:
        pass
    finally:
        (run.path / name).write_bytes(pristine)
    assert (rows, status) == (ROWS, "complete")


@pytest.mark.parametrize("keep", [0, 1, 20, -2])
def test_a_truncated_summary_is_damaged(run: RunDirectory, keep: int) -> None:
    file = run.path / "summary.json"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ResreproError, match=r"summary\.json is damaged"):
        fresh(run).summary()


def test_a_summary_with_another_number_in_it_is_damaged(run: RunDirectory) -> None:
    file = run.path / "summary.json"
    file.write_text(file.read_text().replace('"final_train_error": 12.5', '"final_train_error": 1'))
    with pytest.raises(ResreproError, match=r"summary\.json is damaged"):
        fresh(run).summary()


def test_the_same_number_written_otherwise_is_damage(run: RunDirectory) -> None:
    """A digit beyond a number's precision, too."""
    file = run.path / "metrics.csv"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"0.5", b"0.50"))
    assert file.read_bytes() != content
    with pytest.raises(ResreproError, match="it is not what summary"):
        fresh(run).metrics()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "summary.json"])
def test_a_file_of_another_run_is_noticed(
    name: str,
    run: RunDirectory,
    quick: Callable[..., Config],
    made_up_run: Callable[..., RunDirectory],
) -> None:
    rows = [Row(5, 0.4, 0.02, 2.0, 80.0, 2.0, 80.0, 0.1), *ROWS[1:]]
    other = made_up_run(quick("recipe.iterations=15", "seed=1"), rows)
    (run.path / name).write_bytes((other.path / name).read_bytes())
    with pytest.raises(ResreproError, match=re.escape(str(run.path))):
        fresh(run).metrics()


@pytest.mark.parametrize("content", [b"", b"depth: [", b"depth: 21\n", b"\xff\xfe", b"- 1\n", b"5"])
def test_a_damaged_configuration_is_one_line(run: RunDirectory, content: bytes) -> None:
    (run.path / "config.yaml").write_bytes(content)
    with pytest.raises(ResreproError, match=r"config\.yaml cannot be read") as error:
        fresh(run).config()
    assert "\n" not in str(error.value)


# Checkpoints


def state(number: float) -> dict[str, Any]:
    return {
        "network": {
            "a": torch.full((3, 2), float(number)),
            "b": torch.tensor(float(number)).double(),
        },
        "momentum": [None, torch.arange(4.0)],
        "iteration": int(number),
        "rows": [[1, 0.5], [2, number]],
        "warming_up": False,
        "torch": "2.0",
    }


@pytest.fixture
def saved(run: RunDirectory) -> RunDirectory:
    run.save_checkpoint(state(1), run.config())
    run.save_checkpoint(state(2), run.config())
    return fresh(run)


def newest_and_previous(run: RunDirectory) -> tuple[Path, Path]:
    newest = run.path / "checkpoint.pt"
    (previous,) = set(run.path.glob("*.pt")) - {newest}
    return newest, previous


def assert_state(loaded: dict[str, Any] | None, number: float) -> None:
    expected = state(number)
    assert loaded is not None
    assert {key: loaded[key] for key in expected if key not in ("network", "momentum")} == {
        key: value for key, value in expected.items() if key not in ("network", "momentum")
    }
    for key, tensor in expected["network"].items():
        assert torch.equal(loaded["network"][key], tensor)
        assert loaded["network"][key].dtype == tensor.dtype
    assert loaded["momentum"][0] is None
    assert torch.equal(loaded["momentum"][1], torch.arange(4.0))


def test_the_newest_checkpoint_comes_back(saved: RunDirectory) -> None:
    loaded, warning = saved.load_checkpoint(saved.config())
    assert_state(loaded, 2)
    assert warning is None


def test_a_checkpoint_needs_no_pickled_code(saved: RunDirectory) -> None:
    for file in newest_and_previous(saved):
        assert torch.load(file, weights_only=True)["network"]["a"].shape == (3, 2)


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


def damage(file: Path, kind: str) -> None:
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[:-500])
    elif kind == "number":
        weights = torch.full((3, 2), 2.0).numpy().tobytes()
        flip(file, file.read_bytes().index(weights) + 5)
    elif kind == "start":
        flip(file, 0)
    else:
        file.write_bytes(b"not a checkpoint at all")


@pytest.mark.parametrize("kind", ["empty", "cut", "number", "start", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(saved: RunDirectory, kind: str) -> None:
    damage(newest_and_previous(saved)[0], kind)
    loaded, warning = saved.load_checkpoint(saved.config())
    assert_state(loaded, 1)
    assert warning is not None
    assert "checkpoint.pt" in warning
    assert "\n" not in warning


def test_a_missing_newest_checkpoint_falls_back_too(saved: RunDirectory) -> None:
    newest_and_previous(saved)[0].unlink()
    assert_state(saved.load_checkpoint(saved.config())[0], 1)


def test_two_damaged_checkpoints_are_an_error(saved: RunDirectory) -> None:
    for file in newest_and_previous(saved):
        file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ResreproError, match="no checkpoint can be used") as error:
        saved.load_checkpoint(saved.config())
    assert str(saved.path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_run_is_not_used(
    saved: RunDirectory, quick: Callable[..., Config]
) -> None:
    with pytest.raises(ResreproError, match="belongs to another run"):
        saved.load_checkpoint(quick("recipe.iterations=15", "seed=1"))


def test_a_hostile_checkpoint_runs_nothing(saved: RunDirectory, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "hacked"),)

    # Whoever can write the file can seal it, too.
    content = io.BytesIO()
    torch.save(state(3) | {"network": Hostile()}, content)
    newest, _ = newest_and_previous(saved)
    newest.write_bytes(content.getvalue() + _seal(content.getvalue()))
    loaded, warning = saved.load_checkpoint(saved.config())
    assert_state(loaded, 1)
    assert warning is not None
    assert not (tmp_path / "hacked").exists()


# A disk that is full


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    @contextmanager
    def full() -> Iterator[None]:
        def fail(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            yield

    return full


def test_a_failed_write_leaves_the_old_file(full_disk: Callable[[], Any], tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    with full_disk(), pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new and longer")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_first_write_leaves_nothing(full_disk: Callable[[], Any], tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_no_checkpoint(saved: RunDirectory, full_disk: Callable[[], Any]) -> None:
    for _ in range(3):  # trying again and again loses none either
        with full_disk(), pytest.raises(OSError, match="No space left"):
            saved.save_checkpoint(state(3), saved.config())
    loaded, _ = saved.load_checkpoint(saved.config())
    assert_state(loaded, 2)


# The lock

HOLD = """
import sys, time
from pathlib import Path
from resrepro.runs.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_run(
    run: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    assert run.is_locked()
    who = f"{re.escape(str(run.path))}.*{holder.pid}.*{re.escape(socket.gethostname())}"
    with pytest.raises(ResreproError, match=who) as refused, run.locked():
        pass
    assert refused.value.status == 1


def test_the_lock_of_a_killed_process_does_not_block(
    run: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not run.is_locked()
    with run.locked():
        assert fresh(run).is_locked()
    assert not run.is_locked()


def test_asking_whether_a_run_is_locked_keeps_nobody_from_beginning(run: RunDirectory) -> None:
    """`resrepro status` looks while runs begin: it takes the lock for an instant."""
    program = f"""
from pathlib import Path
from resrepro.runs.run_directory import RunDirectory
print("asking", flush=True)
while True:
    RunDirectory(Path({str(run.path)!r})).is_locked()
"""
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "asking\n"
        for _ in range(100):
            with run.locked():
                pass
        asking.kill()


def test_a_file_system_without_locks_is_named(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of a lock that is a file, and outlives its process."""

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_locks)
    words = f"{run.path} lies on a file system without locks"
    with pytest.raises(ResreproError, match=words), run.locked():
        pytest.fail("it has no lock")
    assert run.is_locked() is None
    assert run_state(run, "running") == "running"  # and not "killed", for nobody can tell


def run_state(run: RunDirectory, status: str) -> str:
    run.write_summary({**(run.summary() or {}), "status": status}, run.metrics())
    return run_status(run).state


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_written_to(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFS and some of FUSE."""
    sync = os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_config_that_was_removed_in_mid_run_is_written_again(
    run: RunDirectory,
) -> None:
    content = (run.path / "config.yaml").read_bytes()
    run.config()  # as it was read when the run began
    (run.path / "config.yaml").unlink()
    run.write_summary({"status": "running"}, [])
    assert (run.path / "config.yaml").read_bytes() == content


def test_a_run_that_another_process_has_begun_does_not_give_way(
    quick: Callable[..., Config], run: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    for name in ("summary.json", "metrics.csv"):
        (run.path / name).unlink()
    other = quick("recipe.iterations=15", "recipe.learning_rate=0.5")
    with (
        pytest.raises(ConfigError, match="holds another configuration"),
        fresh(run).opened(other),
    ):
        pass


def test_a_run_that_has_just_begun_does_not_give_way(
    quick: Callable[..., Config], tmp_path: Path
) -> None:
    """From its first moment on, when there is nothing yet that protects it."""
    config, other = quick(), quick("recipe.learning_rate=0.5")
    path = tmp_path / "begun"
    with RunDirectory(path).opened(config):
        with (
            pytest.raises(ConfigError, match="holds another configuration"),
            RunDirectory(path).opened(other),
        ):
            pass
        with pytest.raises(Locked), RunDirectory(path).opened(config):
            pass
        assert RunDirectory(path).config() == config


def test_a_checkpoint_protects_its_run_where_config_yaml_is_lost(
    quick: Callable[..., Config], tmp_path: Path
) -> None:
    config = quick()
    train(config, Watcher())
    files = {file: file.read_bytes() for file in config.directory.iterdir()}
    (config.directory / "config.yaml").unlink()
    other = quick("recipe.learning_rate=0.5")
    with (
        pytest.raises(ConfigError, match=r"another run, whose config\.yaml is lost; give"),
        RunDirectory(config.directory).opened(other),
    ):
        pass
    with RunDirectory(config.directory).opened(config):
        pass
    assert {file: file.read_bytes() for file in files} == files


# A directory that protects nothing


def test_a_run_that_never_trained_gives_way(
    quick: Callable[..., Config], run: RunDirectory
) -> None:
    """Whatever kept it from training may just have been mended."""
    other = quick("recipe.iterations=15", "recipe.learning_rate=0.5")
    for left in (("config.yaml", "summary.json"), ("config.yaml",)):
        run.write_summary({"status": "failed"}, [])
        for path in run.path.iterdir():
            if path.name not in left:
                path.unlink()
        fresh(run).open(other)
        assert fresh(run).config() == other
        assert fresh(run).summary() is None
        assert "another configuration takes its place" in (run.path / "train.log").read_text()
        other = quick("recipe.iterations=15", "recipe.learning_rate=0.25")


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.previous.pt", "metrics.csv"])
def test_a_checkpoint_or_a_row_protects_its_run(
    name: str, quick: Callable[..., Config], run: RunDirectory
) -> None:
    content = (run.path / "metrics.csv").read_bytes()
    for path in run.path.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    (run.path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="holds another configuration"):
        fresh(run).open(quick("recipe.iterations=15", "recipe.learning_rate=0.5"))
    assert fresh(run).config().recipe.learning_rate == 0.02
    assert (run.path / name).read_bytes() == content


def test_the_advice_that_a_failed_run_gives_can_be_followed(
    quick_words: tuple[str, ...], tmp_path: Path, resrepro_here: Callable[..., Any]
) -> None:
    """Of images that differ in size, and in a sweep of which one run had failed."""
    chance = np.random.default_rng(0)
    for split, size in (("train", 16), ("train", 16), ("train", 20), ("test", 16), ("test", 16)):
        for label in "ab":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True, exist_ok=True)
            pixels = chance.integers(256, size=(size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{len(list(folder.iterdir()))}.png")
    words = ("train", *quick_words, "data=image_folder", f"data.root={tmp_path}/images")
    done = resrepro_here(*words)
    assert done.status == 1
    assert "data.image_size=N" in done.error
    assert resrepro_here(*words, "data.image_size=16").status == 0
    assert resrepro_here(*words, "-m", "data.image_size=16", "seed=0,1").status == 0


# Finding runs


def test_runs_are_found_by_experiment(run: RunDirectory, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    (outputs / "digits/figures").mkdir()
    (outputs / "digits/stray.txt").write_text("")
    assert [found.name for found in find_runs(outputs, "digits")] == ["residual-8-s0"]
    assert find_experiments(outputs) == ["digits"]
    assert find_experiments(tmp_path / "absent") == []


def test_names_are_in_their_natural_order(quick: Callable[..., Config], tmp_path: Path) -> None:
    names = ["plain-8-s0", "plain-8-s2", "plain-8-s10", "plain-14-s0", "residual-8-s0-lr0.05"]
    names += ["residual-8-s0-lr0.1", "residual-110-s0"]
    for name in reversed(names):
        (tmp_path / "outputs/digits" / name).mkdir(parents=True)
        (tmp_path / "outputs/digits" / name / "config.yaml").write_text("")
        (tmp_path / "outputs" / f"{name}-sweep" / name).mkdir(parents=True)
        (tmp_path / "outputs" / f"{name}-sweep" / name / "config.yaml").write_text("")
    assert [run.name for run in find_runs(tmp_path / "outputs", "digits")] == names
    found = find_experiments(tmp_path / "outputs")
    assert found == ["digits", *[f"{name}-sweep" for name in sorted(names, key=natural)]]
    assert sorted(["1", "a1", "", "10", "2", "a"], key=natural) == ["", "1", "2", "10", "a", "a1"]


def test_no_runs_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ResreproError, match=r"no runs in .*/absent; .*experiment=absent"):
        find_runs(tmp_path, "absent")
