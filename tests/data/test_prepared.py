import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resrepro.data import digest_of
from resrepro.data.prepared import ARRAYS, Arrays, load_or_prepare


def arrays_of(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (7, 3, 8, 8), np.uint8),
        rng.integers(0, 4, 7),
        rng.integers(0, 256, (5, 3, 8, 8), np.uint8),
        rng.integers(0, 4, 5),
    )


class Prepare:
    """Prepares arrays and counts how often."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays, self.calls = arrays, 0

    def __call__(self) -> tuple[Arrays, int]:
        self.calls += 1
        return self.arrays, 4


@pytest.fixture
def prepare() -> Prepare:
    return Prepare(arrays_of(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there" / "prepared"


def assert_is(folder: Path, prepare: Prepare) -> None:
    dataset = load_or_prepare(folder, prepare)
    for name, array in zip(ARRAYS, prepare.arrays, strict=True):
        loaded = getattr(dataset, name)
        np.testing.assert_array_equal(loaded, array)
        assert loaded.dtype == array.dtype
    assert dataset.classes == 4
    assert dataset.digest == digest_of(*prepare.arrays)


def test_a_data_set_is_prepared_once(folder: Path, prepare: Prepare) -> None:
    assert_is(folder, prepare)
    assert_is(folder, prepare)
    assert prepare.calls == 1


def test_only_the_folder_and_its_lock_are_left(folder: Path, prepare: Prepare) -> None:
    load_or_prepare(folder, prepare)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["prepared", "prepared.lock"]


def test_the_arrays_can_be_written_to_and_the_files_stay_as_they_are(
    folder: Path, prepare: Prepare
) -> None:
    dataset = load_or_prepare(folder, prepare)
    for name in ARRAYS:
        getattr(dataset, name)[:] = 1
    assert_is(folder, prepare)
    assert prepare.calls == 1


def test_the_arrays_are_mapped_and_not_read_into_memory(folder: Path, prepare: Prepare) -> None:
    assert isinstance(load_or_prepare(folder, prepare).train_images, np.memmap)


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a byte flipped": flip_last_byte,
    "cut short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "cut in the header": lambda file: os.truncate(file, 20),
    "empty, as after a power cut": lambda file: os.truncate(file, 0),
    "nothing but zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "gone": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "another array": lambda file: np.save(file, np.zeros(7, np.int64)),
    "an array of objects": lambda file: np.save(file, np.array([{}]), allow_pickle=True),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", list(DAMAGE.values()), ids=list(DAMAGE))
def test_a_damaged_array_is_prepared_again(
    folder: Path, prepare: Prepare, name: str, damage: Callable[[Path], object]
) -> None:
    load_or_prepare(folder, prepare)
    damage(folder / f"{name}.npy")
    assert_is(folder, prepare)
    assert prepare.calls == 2
    assert_is(folder, prepare)
    assert prepare.calls == 2


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", "5", "{}", '{"classes": 4}', '{"digest": null}', "\0\xff"]
)
def test_damaged_metadata_are_prepared_again(folder: Path, prepare: Prepare, content: str) -> None:
    load_or_prepare(folder, prepare)
    (folder / "meta.json").write_text(content, encoding="latin1")
    assert_is(folder, prepare)
    assert prepare.calls == 2


def test_metadata_of_another_digest_are_prepared_again(folder: Path, prepare: Prepare) -> None:
    load_or_prepare(folder, prepare)
    meta = {"classes": 4, "digest": digest_of(*arrays_of(1))}
    (folder / "meta.json").write_text(json.dumps(meta))
    assert_is(folder, prepare)
    assert prepare.calls == 2


def test_no_header_byte_can_be_damaged_unnoticed(folder: Path, prepare: Prepare) -> None:
    load_or_prepare(folder, prepare)
    file = folder / "train_labels.npy"
    whole = file.read_bytes()
    header = len(whole) - prepare.arrays[1].nbytes
    for place in range(header):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        file.write_bytes(damaged)
        assert_is(folder, prepare)


def test_a_preparation_that_fails_leaves_nothing(folder: Path, prepare: Prepare) -> None:
    def fail() -> tuple[Arrays, int]:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        load_or_prepare(folder, fail)
    assert [path.name for path in folder.parent.iterdir()] == ["prepared.lock"]
    assert_is(folder, prepare)


def test_a_disk_that_fills_up_leaves_nothing(
    folder: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = np.save, []

    def save_one(file: Path, array: np.ndarray) -> None:
        if saved:
            raise OSError("no space left on device")
        saved.append(file)
        save(file, array)

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", save_one)
        with pytest.raises(OSError, match="no space"):
            load_or_prepare(folder, prepare)
    assert saved
    assert [path.name for path in folder.parent.iterdir()] == ["prepared.lock"]
    assert_is(folder, prepare)


def test_a_disk_that_does_not_keep_what_is_written_is_told_of(
    folder: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = np.save
    monkeypatch.setattr(np, "save", lambda file, array: save(file, array * 0))
    with pytest.raises(OSError, match="does not read back"):
        load_or_prepare(folder, prepare)


def test_what_a_killed_process_left_is_in_nobodys_way(
    folder: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Process ids come round again.
    monkeypatch.setattr(os, "getpid", lambda: 4242)
    left = folder.with_name(f".{folder.name}.4242")
    left.mkdir(parents=True)
    (left / "train_images.npy").write_bytes(b"half")
    assert_is(folder, prepare)
    assert not left.exists()


def test_processes_that_start_together_prepare_once(folder: Path, tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
import numpy as np
from resrepro.data.prepared import load_or_prepare

def prepare():
    with open(sys.argv[2], "a") as calls:
        calls.write("prepared\\n")
    time.sleep(0.5)
    images, labels = np.ones((4, 1, 8, 8), np.uint8), np.arange(4)
    return (images, labels, images, labels), 4

print("ready", flush=True)
sys.stdin.readline()
print(load_or_prepare(Path(sys.argv[1]), prepare).digest)
"""
    calls = tmp_path / "calls"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(calls)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=30)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert calls.read_text() == "prepared\n"
    assert outputs[0][-1] == outputs[1][-1]
