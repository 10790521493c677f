"""A disk that takes no more: one line that names the file, nothing lost, and on when there is room.

The disks are a small file system in memory (where the tests run as root), a limit on the size
of files, and failures of single file operations.
"""

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import survival
from survival import TINY, Moment, Nursery, one_line_only, outcome, standing_of, unequal

NAME = "residual-8-s0"


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    return survival.the_nursery()


@pytest.fixture(scope="module")
def unbroken(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outputs = tmp_path_factory.mktemp("unbroken")
    assert nursery.start(train_words(outputs)).wait() == 0
    return outcome(outputs / "digits" / NAME)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB: room for the checkpoints of a tiny run, and hardly more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root's rights")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def train_words(outputs: Path, *more: str) -> list[str]:
    return ["train", *TINY, f"outputs={outputs}", *more]


def fill(disk: Path, leave: int) -> None:
    """Fills a disk but for some bytes; the older checkpoint's are not there to be had."""
    for older in disk.rglob("checkpoint.previous.pt"):
        older.unlink()
    there_is = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(there_is.f_bavail * there_is.f_frsize - leave))


def reason_of(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_bytes())["reason"])


def table(nursery: Nursery, outputs: Path) -> str:
    life = nursery.start(["status", f"outputs={outputs}"])
    assert (life.wait(), life.err) == (0, "")
    return life.out


def test_a_full_disk(nursery: Nursery, unbroken: dict[str, Any], small_disk: Path) -> None:
    run, words = small_disk / "digits" / NAME, train_words(small_disk)
    assert nursery.start(words, Moment("iteration", 20, signal=signal.SIGTERM)).wait() == 143
    saved = survival.saved_iteration(run)
    fill(small_disk, leave=20_000)
    for _ in range(2):
        life = nursery.start(words)
        assert life.wait() == 1
        assert one_line_only(life.err), life.err
        assert f"{run}/checkpoint.pt: cannot be written: No space left on device" in life.err
        assert standing_of(run) == "failed"
        assert "No space left on device" in table(nursery, small_disk)
        assert "checkpoint.pt" in reason_of(run)
    checkpoints = [p for p in (run / "checkpoint.pt", run / "checkpoint.previous.pt") if p.exists()]
    assert checkpoints, "the earlier checkpoint is gone"
    (small_disk / "ballast").unlink()
    life = nursery.start(words)
    assert life.wait() == 0, life.err
    assert f"goes on from iteration {saved}" in life.out
    assert unequal(run, unbroken) == []


@pytest.mark.parametrize("left", [0, 4096, 8192, 12288])
def test_a_disk_that_is_full_to_the_last_block(
    nursery: Nursery, unbroken: dict[str, Any], small_disk: Path, left: int
) -> None:
    """Where not even a summary can be written: still a line, and nothing is lost."""
    run, words = small_disk / "digits" / NAME, train_words(small_disk)
    assert nursery.start(words, Moment("iteration", 20, signal=signal.SIGTERM)).wait() == 143
    fill(small_disk, leave=left)
    life = nursery.start(words)
    assert life.wait() == 1
    assert one_line_only(life.err), life.err
    assert "No space left on device" in life.err
    assert str(run) in life.err, "the line names no file"
    assert standing_of(run) in ("failed", "interrupted", "killed")
    table(nursery, small_disk)
    (small_disk / "ballast").unlink()
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken) == []


def test_a_disk_that_is_full_before_the_run_begins(nursery: Nursery, small_disk: Path) -> None:
    fill(small_disk, leave=0)
    life = nursery.start(train_words(small_disk / "runs"))
    assert life.wait() == 1
    assert one_line_only(life.err), life.err
    assert "No space left on device" in life.err
    assert str(small_disk) in life.err, "the line names no file"
    (small_disk / "ballast").unlink()
    assert nursery.start(train_words(small_disk / "runs")).wait() == 0


def test_a_disk_that_becomes_read_only(
    nursery: Nursery, unbroken: dict[str, Any], small_disk: Path
) -> None:
    run, words = small_disk / "digits" / NAME, train_words(small_disk)
    assert nursery.start(words, Moment("iteration", 20, signal=signal.SIGTERM)).wait() == 143
    remount(small_disk, "ro")
    life = nursery.start(words)
    assert life.wait() == 1
    assert one_line_only(life.err), life.err
    assert "Read-only file system" in life.err
    assert str(run) in life.err, "the line names no file"
    assert "interrupted" in table(nursery, small_disk)
    remount(small_disk, "rw")
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken) == []


def test_files_that_may_not_grow(
    nursery: Nursery, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    """A limit between the size of the summary and that of the checkpoint."""
    run, words = tmp_path / "digits" / NAME, train_words(tmp_path)
    assert nursery.start(words, Moment("iteration", 20, signal=signal.SIGTERM)).wait() == 143
    saved = (run / "checkpoint.pt").read_bytes()
    for _ in range(2):
        life = nursery.start(words, limits={"RLIMIT_FSIZE": 20_000})
        assert life.wait() == 1
        assert one_line_only(life.err), life.err
        assert f"{run}/checkpoint.pt: cannot be written: File too large" in life.err
        assert standing_of(run) == "failed"
        assert "File too large" in table(nursery, tmp_path)
        assert saved in [file.read_bytes() for file in run.glob("checkpoint*.pt")]
    assert not list(run.glob(".*.partial"))
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken) == []


def test_a_log_that_may_not_grow(
    nursery: Nursery, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    run, words = tmp_path / "digits" / NAME, train_words(tmp_path)
    assert nursery.start(words, Moment("iteration", 20, signal=signal.SIGTERM)).wait() == 143
    with (run / "train.log").open("a") as file:
        file.write("x" * 200_000 + "\n")
    life = nursery.start(words, limits={"RLIMIT_FSIZE": 150_000})
    assert life.wait() == 1
    assert one_line_only(life.err), life.err
    assert f"{run}/train.log: cannot be written: File too large" in life.err
    assert standing_of(run) == "failed"
    assert nursery.start(words).wait() == 0
    assert unequal(run, unbroken) == []


@pytest.mark.parametrize(
    ("place", "error", "short"),
    [
        ("file", errno.ENOSPC, (2, 12)),
        ("checkpoint file", errno.EDQUOT, (5,)),
        ("file", errno.EIO, (9,)),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else None,
)
def test_file_operations_that_fail(
    nursery: Nursery,
    unbroken: dict[str, Any],
    tmp_path: Path,
    place: str,
    error: int,
    short: tuple[int, ...],
) -> None:
    """All from a certain one on: sync or rename, of whichever file."""
    for count in survival.thorough_range(short, range(1, 40)):
        outputs = tmp_path / str(count)
        run, words = outputs / "digits" / NAME, train_words(outputs)
        life = nursery.start(words, Moment(place, count, signal=0, error=error))
        if life.wait() == 0 and count > 20:  # as many operations as that it does not have
            break
        assert life.wait() == 1, f"operation {count}: {life.err}"
        assert one_line_only(life.err), life.err
        assert os.strerror(error) in life.err
        assert str(run) in life.err, f"operation {count}: the line names no file"
        life = nursery.start(words)
        assert life.wait() == 0, life.err
        assert unequal(run, unbroken) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(nursery: Nursery, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    life = nursery.start(train_words(tmp_path / "runs"))
    assert life.wait() == 1
    tmp_path.chmod(0o700)
    assert one_line_only(life.err), life.err
    assert f"{tmp_path}/runs" in life.err
    assert "Permission denied" in life.err


def test_a_full_disk_stops_no_other_run_of_a_sweep(
    nursery: Nursery, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    """Each says why it failed, and the same command goes on with all of them."""
    words = ["train", "-m", *TINY, f"outputs={tmp_path}", "seed=0,1"]
    life = nursery.start(words, limits={"RLIMIT_FSIZE": 20_000})
    assert life.wait() == 1
    assert "Traceback" not in life.err
    for seed in (0, 1):
        assert standing_of(tmp_path / "digits" / f"residual-8-s{seed}") == "failed"
        (line,) = (line for line in life.err.splitlines() if line.startswith(f"residual-8-s{seed}"))
        assert "File too large" in line
        assert f"residual-8-s{seed}/checkpoint.pt" in line
    assert nursery.start(words).wait() == 0
    assert unequal(tmp_path / "digits" / NAME, unbroken) == []
