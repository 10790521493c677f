import csv
import hashlib
import itertools
import os
import pickle
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Host, Output, wait_until
from small_cifar import (
    SmallCifar,
    binary_file,
    python2_batch,
    python3_batch,
    random_images,
    sha256,
    small_cifar10,
    small_cifar100,
    symbolic_link,
    tar_gz,
)

from resrepro import cli
from resrepro.configuration.schema import Data
from resrepro.data import Dataset, cifar, load
from resrepro.data.cifar import OFFICIAL, parse_binary, parse_python
from resrepro.errors import ResreproError

Serve = Callable[..., Host]
Run = Callable[..., tuple[int, str, str]]

CIFAR10 = OFFICIAL["cifar10"]
NAME = CIFAR10.binary.archive
FOLDER = CIFAR10.binary.folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def data(root: Path, dead_url: str) -> Data:
    """CIFAR-10 as our small archive; from the network nothing is to be had."""
    return Data(name="cifar10", root=str(root), url=[dead_url], sha256=small_cifar10().sha256)


def assert_is(dataset: Dataset, small: SmallCifar) -> None:
    np.testing.assert_array_equal(dataset.train_images, small.train_images)
    np.testing.assert_array_equal(dataset.train_labels, small.train_labels)
    np.testing.assert_array_equal(dataset.test_images, small.test_images)
    np.testing.assert_array_equal(dataset.test_labels, small.test_labels)
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64


def refusal(data: Data) -> str:
    """The line with which a data set is refused."""
    with pytest.raises(ResreproError) as caught:
        load(data)
    message = str(caught.value)
    assert "\n" not in message
    assert not list(Path(str(data.root)).glob("prepared/*/*"))
    return message


def files_under(folder: Path) -> set[str]:
    """All there is but empty locks."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_symlink() or (path.is_file() and (path.suffix != ".lock" or path.stat().st_size))
    }


def unpack(small: SmallCifar, root: Path) -> None:
    for path, content in small.files.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)


def changed(path: str, content: bytes | None) -> dict[str, bytes]:
    """The files of the small archive but for one."""
    files = dict(small_cifar10().files)
    del files[path]
    return files if content is None else files | {path: content}


def put(root: Path, data: Data, archive: bytes) -> Data:
    """Puts an archive of our own where the official one is looked for."""
    (root / NAME).write_bytes(archive)
    return replace(data, sha256=sha256(archive))


# The formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "classes"), [(small_cifar10(), 10), (small_cifar100(), 100)], ids=["10", "100"]
)
def test_the_binary_version_is_read(
    root: Path, data: Data, small: SmallCifar, classes: int
) -> None:
    (root / "archive").write_bytes(small.archive)
    data = replace(data, name=f"cifar{classes}", archive=str(root / "archive"), sha256=small.sha256)
    dataset = load(data)
    assert_is(dataset, small)
    assert dataset.classes == classes
    assert dataset.channels == 3


def test_a_record_is_a_label_and_rows_of_red_of_green_and_of_blue() -> None:
    record = bytes([7]) + bytes(i // 32 for i in range(1024)) + bytes([100]) * 1024 + bytes(1024)
    images, labels = parse_binary(CIFAR10, record * 2)
    assert labels.tolist() == [7, 7]
    assert images.shape == (2, 3, 32, 32)
    red, green, blue = images[1]
    assert (red == np.arange(32)[:, None]).all()
    assert (green == 100).all()
    assert (blue == 0).all()


def test_of_cifar_100_the_fine_labels_are_read() -> None:
    record = bytes([19, 99]) + bytes([5]) * 3072
    images, labels = parse_binary(OFFICIAL["cifar100"], record)
    assert labels.tolist() == [99]
    assert (images == 5).all()


@pytest.mark.parametrize("pickled", [python2_batch, python3_batch])
@pytest.mark.parametrize(("name", "key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_a_batch_of_the_python_version_is_read(
    pickled: Callable[..., bytes], name: str, key: str
) -> None:
    rng = np.random.default_rng(0)
    images = random_images(rng, 12)
    labels = rng.integers(0, OFFICIAL[name].classes, 12)
    read_images, read_labels = parse_python(OFFICIAL[name], pickled(images, labels, key))
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)
    assert (read_images.dtype, read_labels.dtype) == (np.uint8, np.int64)


def python_files(small: SmallCifar) -> dict[str, bytes]:
    images = np.concatenate([small.train_images, small.test_images])
    labels = np.concatenate([small.train_labels, small.test_labels])
    count = len(small.test_labels)
    return {
        f"{CIFAR10.python.folder}/{name}": python2_batch(
            images[i * count : (i + 1) * count], labels[i * count : (i + 1) * count]
        )
        for i, name in enumerate(CIFAR10.python.files)
    }


def make_official(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], archive: bytes) -> None:
    """Lets our own files of the Python version pass for the official ones."""
    digests = tuple(
        hashlib.md5(content, usedforsecurity=False).hexdigest() for content in files.values()
    )
    python = replace(CIFAR10.python, digests=digests)
    official = replace(CIFAR10, python=python, python_sha256=sha256(archive))
    monkeypatch.setitem(OFFICIAL, "cifar10", official)


@pytest.mark.parametrize("as_archive", [True, False])
def test_the_python_version_is_read_from_the_root(
    root: Path, data: Data, monkeypatch: pytest.MonkeyPatch, as_archive: bool
) -> None:
    files = python_files(small_cifar10())
    archive = tar_gz(files)
    make_official(monkeypatch, files, archive)
    if as_archive:
        (root / CIFAR10.python.archive).write_bytes(archive)
    else:
        (root / CIFAR10.python.folder).mkdir()
        for path, content in files.items():
            (root / path).write_bytes(content)
    assert_is(load(data), small_cifar10())


# Pickles that want to run something --------------------------------------------------------------


class Reduced:
    """Pickled, a call of a function; unpickled carelessly, the function runs."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def hostile_pickles(marker: Path) -> Iterable[bytes]:
    """Pickles that make the marker when they are loaded: as a value, a key, with dotted names."""
    runs = [
        Reduced(os.mkdir, str(marker)),
        Reduced(os.system, f"mkdir '{marker}'"),
        Reduced(eval, f"__import__('os').mkdir({str(marker)!r})"),
        Reduced(exec, f"import os; os.mkdir({str(marker)!r})"),
    ]
    for run, protocol in itertools.product(runs, (0, 2, 4)):
        yield pickle.dumps(run, protocol)
        yield pickle.dumps({"data": run, "labels": [0]}, protocol)
        yield pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [run]}, protocol)
    # Names that are reached through a module which is allowed.
    path = f"X{len(str(marker)).to_bytes(4, 'little').decode('latin1')}{marker}".encode("latin1")
    for module, name in (("numpy", "os.mkdir"), ("numpy", "f2py.os.mkdir"), ("_codecs", "mkdir")):
        names = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
        yield b"\x80\x04" + names + b"\x93" + path + b"\x85R."


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    ran = 0
    for hostile in hostile_pickles(marker):
        with pytest.raises(ResreproError, match="asks for"):
            parse_python(CIFAR10, hostile)
        assert not marker.exists()
        try:
            pickle.loads(hostile)
        except (AttributeError, ImportError):
            continue
        finally:
            ran += marker.exists()
            shutil.rmtree(marker, ignore_errors=True)
    assert ran >= 36  # that is, these pickles are hostile


@pytest.mark.parametrize("as_archive", [True, False])
@pytest.mark.parametrize("seems_official", [True, False])
def test_hostile_files_of_the_python_version_run_nothing(
    root: Path,
    data: Data,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    as_archive: bool,
    seems_official: bool,
) -> None:
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Reduced(os.mkdir, str(marker)), 2)
    files = {f"{CIFAR10.python.folder}/{name}": hostile for name in CIFAR10.python.files}
    archive = tar_gz(files)
    if seems_official:
        make_official(monkeypatch, files, archive)
    if as_archive:
        (root / CIFAR10.python.archive).write_bytes(archive)
    else:
        (root / CIFAR10.python.folder).mkdir()
        for path, content in files.items():
            (root / path).write_bytes(content)
    message = refusal(data)
    assert not marker.exists()
    assert ("asks for" if seems_official else "is not the official") in message


BROKEN_PICKLES = {
    "empty": b"",
    "no pickle": b"no pickle",
    "text": b"<html>sign in</html>",
    "cut short": python2_batch(random_images(np.random.default_rng(0), 2), np.zeros(2, int))[:-500],
    "a list": pickle.dumps([1, 2], 2),
    "a number": pickle.dumps(5, 2),
    "no data": pickle.dumps({"labels": [1]}, 2),
    "no labels": pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}, 2),
    "empty labels": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": []}, 2),
    "labels that are no numbers": pickle.dumps(
        {"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, 2
    ),
    "data that are text": pickle.dumps({"data": "text", "labels": [1]}, 2),
    "data of another width": pickle.dumps(
        {"data": np.zeros((1, 3071), np.uint8), "labels": [1]}, 2
    ),
    "fewer labels than images": pickle.dumps(
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, 2
    ),
    "a label too high": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 2),
    "a label below 0": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, 2),
    "a state that a list cannot have": b"]}X\x01\x00\x00\x00aK\x01sb.",
    "a memo that is not there": b"h\x05.",
    "another protocol": b"\x80\x7f.",
}


@pytest.mark.parametrize("content", list(BROKEN_PICKLES.values()), ids=list(BROKEN_PICKLES))
def test_a_broken_batch_of_the_python_version_is_refused(content: bytes) -> None:
    with pytest.raises(ResreproError):
        parse_python(CIFAR10, content)


def test_a_batch_cut_short_anywhere_is_refused() -> None:
    whole = python2_batch(random_images(np.random.default_rng(0), 1), np.array([3]))
    # At each byte but for those in the middle of the pixels.
    for length in [*range(200), *range(len(whole) - 100, len(whole))]:
        with pytest.raises(ResreproError):
            parse_python(CIFAR10, whole[:length])


# The digest --------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    small_cifar10(seed=1)  # made with tarfile, so before

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something is parsed")

    monkeypatch.setattr(tarfile, "open", refuse)
    for name in ("parse_binary", "parse_python"):
        monkeypatch.setattr(cifar, name, refuse)


@pytest.mark.usefixtures("nothing_is_parsed")
@pytest.mark.parametrize("where", ["data.archive", NAME, CIFAR10.python.archive])
def test_an_archive_of_another_digest_is_refused_before_anything_is_parsed(
    root: Path, data: Data, where: str
) -> None:
    other = small_cifar10(seed=1)
    if where == "data.archive":
        archive = root / "elsewhere.tar.gz"
        data = replace(data, archive=str(archive))
    else:
        archive = root / where
    archive.write_bytes(other.archive)
    message = refusal(data)
    assert str(archive) in message
    assert other.sha256 in message
    assert str(data.sha256) in message
    assert archive.read_bytes() == other.archive  # it is the user's


@pytest.mark.usefixtures("nothing_is_parsed")
def test_a_mirror_that_gives_another_archive_is_refused_before_anything_is_parsed(
    root: Path, data: Data, serve: Serve
) -> None:
    host = serve(small_cifar10(seed=1).archive)
    message = refusal(replace(data, url=[host.url]))
    assert small_cifar10(seed=1).sha256[:12] in message
    assert files_under(root) == set()


def test_the_official_digests_are_those_that_are_published() -> None:
    # https://www.cs.toronto.edu/~kriz/cifar.html has MD5s; those of the batches are torchvision's.
    assert {name: len(o.python.digests) for name, o in OFFICIAL.items()} == {
        "cifar10": 6,
        "cifar100": 2,
    }
    for official in OFFICIAL.values():
        assert len(official.python.digests) == len(official.python.files)
        assert not official.binary.digests


@pytest.mark.parametrize("name", CIFAR10.python.files)
def test_one_file_that_is_not_official_spoils_the_folder(
    root: Path, data: Data, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = python_files(small_cifar10())
    make_official(monkeypatch, files, b"")
    (root / CIFAR10.python.folder).mkdir()
    for path, content in files.items():
        (root / path).write_bytes(content)
    spoilt = root / CIFAR10.python.folder / name
    content = spoilt.read_bytes()
    # A valid pickle all the same.
    spoilt.write_bytes(content.replace(b"\xff", b"\xfe", 1))
    assert spoilt.read_bytes() != content
    message = refusal(data)
    assert str(spoilt) in message
    assert "MD5" in message


# Broken archives and folders ---------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_an_archive_that_is_cut_short_is_refused(root: Path, data: Data, share: float) -> None:
    whole = small_cifar10().archive
    data = put(root, data, whole[: int(share * len(whole))])
    assert str(root / NAME) in refusal(data)


def test_an_archive_whose_compression_is_damaged_is_refused(root: Path, data: Data) -> None:
    regular = {path: bytes(len(content)) for path, content in small_cifar10().files.items()}
    damaged = bytearray(tar_gz(regular))
    third = len(damaged) // 3
    damaged[third : 2 * third] = b"\xff" * third
    assert str(root / NAME) in refusal(put(root, data, bytes(damaged)))


@pytest.mark.parametrize("content", [b"<html>sign in</html>", tar_gz({})])
def test_what_is_no_archive_of_cifar_is_refused(root: Path, data: Data, content: bytes) -> None:
    assert str(root / NAME) in refusal(put(root, data, content))


@pytest.mark.parametrize("path", small_cifar10().files)
def test_an_archive_that_lacks_a_file_is_refused(root: Path, data: Data, path: str) -> None:
    message = refusal(put(root, data, tar_gz(changed(path, None))))
    assert f"{root / NAME} lacks {path}" in message
    assert message.count(".bin") == 1


@pytest.mark.parametrize("kind", ["symbolic link", "link out of it", "folder", "device"])
def test_an_archive_with_something_else_in_a_files_place_is_refused(
    root: Path, data: Data, kind: str
) -> None:
    path = f"{FOLDER}/data_batch_3.bin"
    member = symbolic_link(path, "nowhere")
    if kind == "link out of it":
        secret = root.parent / "secret"
        secret.write_bytes(small_cifar10().files[path])
        member.linkname = str(secret)
    elif kind != "symbolic link":
        member.type = tarfile.DIRTYPE if kind == "folder" else tarfile.FIFOTYPE
    message = refusal(put(root, data, tar_gz(changed(path, None), member)))
    assert str(root / NAME) in message


WRONG_FILES = {
    "empty": b"",
    "a byte short": binary_file(small_cifar10().test_images, small_cifar10().test_labels)[:-1],
    "a byte long": binary_file(small_cifar10().test_images, small_cifar10().test_labels) + b"\0",
    "records without a label": small_cifar10().test_images.tobytes(),
    "a label of 10": binary_file(small_cifar10().test_images[:1], np.array([10])),
    "a label of 255": binary_file(small_cifar10().test_images[:1], np.array([255])),
}


@pytest.mark.parametrize("content", list(WRONG_FILES.values()), ids=list(WRONG_FILES))
@pytest.mark.parametrize("name", ["data_batch_1.bin", "test_batch.bin"])
@pytest.mark.parametrize("as_archive", [True, False])
def test_wrong_records_are_refused(
    root: Path, data: Data, content: bytes, name: str, as_archive: bool
) -> None:
    files = changed(f"{FOLDER}/{name}", content)
    if as_archive:
        data = put(root, data, tar_gz(files))
    else:
        unpack(replace(small_cifar10(), files=files), root)
    assert "CIFAR file" in refusal(data)


@pytest.mark.parametrize("as_archive", [True, False])
def test_the_file_with_wrong_records_is_named(root: Path, data: Data, as_archive: bool) -> None:
    files = changed(f"{FOLDER}/data_batch_4.bin", b"short")
    if as_archive:
        data = put(root, data, tar_gz(files))
    else:
        unpack(replace(small_cifar10(), files=files), root)
    assert "data_batch_4.bin" in refusal(data)


@pytest.mark.parametrize("name", CIFAR10.binary.files)
def test_a_folder_that_lacks_a_file_is_refused(root: Path, data: Data, name: str) -> None:
    unpack(small_cifar10(), root)
    (root / FOLDER / name).unlink()
    assert str(root / FOLDER / name) in refusal(data)


def test_nothing_of_an_archive_is_unpacked_to_disk(
    root: Path, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = small_cifar10()
    outside = tmp_path / "outside"
    outside.mkdir()
    evil = {
        "../evil": b"evil",
        "../../evil": b"evil",
        f"{outside}/evil": b"evil",
        f"{FOLDER}/../../evil": b"evil",
        f"{FOLDER}/link/evil": b"evil",
        f"{FOLDER}/../{FOLDER}/data_batch_1.bin": b"evil",
        f"../{FOLDER}/data_batch_1.bin": b"evil",
        f"/{FOLDER}/data_batch_1.bin": b"evil",
    }
    link = symbolic_link(f"{FOLDER}/link", str(outside))
    data = put(root, data, tar_gz(small.files | evil, link))
    before = files_under(tmp_path)
    assert_is(load(data), small)
    new = files_under(tmp_path) - before
    assert new
    assert {Path(path).parts[:2] for path in new} == {("root", "prepared")}
    assert {Path(path).suffix for path in new} == {".npy", ".json"}


def test_an_archive_whose_names_begin_with_a_dot_is_read(root: Path, data: Data) -> None:
    files = {f"./{path}": content for path, content in small_cifar10().files.items()}
    assert_is(load(put(root, data, tar_gz(files))), small_cifar10())


# Where it comes from -----------------------------------------------------------------------------


def test_the_first_mirror_that_gives_it_is_taken(
    root: Path, data: Data, serve: Serve, dead_url: str
) -> None:
    small = small_cifar10()
    good, unasked = serve(small.archive), serve(small.archive)
    data = replace(data, url=[dead_url, good.url, unasked.url])
    assert_is(load(data), small)
    assert (len(good.requests), len(unasked.requests)) == (1, 0)
    assert (root / NAME).read_bytes() == small.archive
    assert not (root / f"{NAME}.part").exists()


def test_cifar_100_is_fetched_too(root: Path, data: Data, serve: Serve) -> None:
    small = small_cifar100()
    host = serve(small.archive)
    data = replace(data, name="cifar100", url=[host.url], sha256=small.sha256)
    assert_is(load(data), small)
    assert (root / "cifar-100-binary.tar.gz").read_bytes() == small.archive


@pytest.mark.parametrize("as_archive", [True, False])
def test_what_lies_in_the_root_needs_no_network(
    root: Path, data: Data, serve: Serve, as_archive: bool
) -> None:
    small = small_cifar10()
    host = serve(small.archive)
    if as_archive:
        (root / NAME).write_bytes(small.archive)
    else:
        unpack(small, root)
    assert_is(load(replace(data, url=[host.url])), small)
    assert host.requests == []


def test_an_archive_that_is_named_goes_before_what_lies_in_the_root(
    root: Path, data: Data, tmp_path: Path
) -> None:
    unpack(small_cifar10(seed=1), root)
    (root / NAME).write_bytes(small_cifar10(seed=1).archive)
    by_hand = tmp_path / "by hand.tar.gz"
    by_hand.write_bytes(small_cifar10().archive)
    assert_is(load(replace(data, archive=str(by_hand))), small_cifar10())


def test_a_root_and_an_archive_may_lie_at_home(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.tar.gz").write_bytes(small_cifar10().archive)
    assert_is(load(replace(data, root="~/new/root", archive="~/mine.tar.gz")), small_cifar10())
    assert (tmp_path / "new" / "root" / "prepared").is_dir()


def test_an_archive_that_is_not_there_is_named(data: Data, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.tar.gz")
    assert (
        refusal(replace(data, archive=missing)) == f"data.archive={missing}: there is no such file"
    )


def test_where_it_cannot_be_fetched_the_way_by_hand_is_told(
    root: Path, data: Data, dead_url: str
) -> None:
    message = refusal(data)
    for part in (NAME, dead_url, str(root / NAME), "data.archive=", "refused"):
        assert part in message
    assert files_under(root) == set()


def test_a_tenth_of_the_training_images_is_held_out_for_validation(root: Path, data: Data) -> None:
    small = small_cifar10()
    unpack(small, root)
    dataset = load(replace(data, split="validation"))
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (90, 10)
    assert np.bincount(dataset.test_labels).tolist() == [1] * 10
    both = np.concatenate([dataset.train_images, dataset.test_images])
    assert sorted(map(bytes, both)) == sorted(map(bytes, small.train_images))
    assert load(data).digest == dataset.digest


# What is prepared --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16])
def test_a_size_averages_areas(root: Path, data: Data, size: int) -> None:
    small = small_cifar10()
    (root / NAME).write_bytes(small.archive)
    dataset = load(replace(data, image_size=size))
    step = 32 // size
    for images, originals in (
        (dataset.train_images, small.train_images),
        (dataset.test_images, small.test_images),
    ):
        exact = originals.reshape(-1, 3, size, step, size, step).mean(axis=(3, 5))
        assert images.shape == exact.shape
        # To a grey level: Pillow rounds twice, once for each direction.
        assert np.abs(images - exact).max() <= 1
    np.testing.assert_array_equal(dataset.train_labels, small.train_labels)


def test_each_size_is_prepared_for_itself(root: Path, data: Data) -> None:
    (root / NAME).write_bytes(small_cifar10().archive)
    sizes = [None, 16, 8, None, 16]
    shapes = [load(replace(data, image_size=size)).train_images.shape[2:] for size in sizes]
    assert shapes == [(32, 32), (16, 16), (8, 8), (32, 32), (16, 16)]


def test_what_is_prepared_is_parsed_once(
    root: Path, data: Data, request: pytest.FixtureRequest
) -> None:
    (root / NAME).write_bytes(small_cifar10().archive)
    first = load(data)
    (root / NAME).unlink()
    request.getfixturevalue("nothing_is_parsed")
    second = load(data)
    assert_is(second, small_cifar10())
    assert second.digest == first.digest
    assert isinstance(second.train_images, np.memmap)


def test_what_was_prepared_and_is_damaged_is_prepared_again(root: Path, data: Data) -> None:
    (root / NAME).write_bytes(small_cifar10().archive)
    load(data)
    for damaged in root.glob("prepared/*/*.npy"):
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert_is(load(data), small_cifar10())
        assert damaged.read_bytes() == content


def test_archives_of_different_digests_are_not_taken_for_each_other(root: Path, data: Data) -> None:
    for seed in (0, 1, 0):
        small = small_cifar10(seed)
        (root / NAME).write_bytes(small.archive)
        assert_is(load(replace(data, sha256=small.sha256)), small)


def test_a_folder_whose_files_changed_is_prepared_again(root: Path, data: Data) -> None:
    for seed in (0, 1):
        unpack(small_cifar10(seed), root)
        assert_is(load(data), small_cifar10(seed))


def test_a_folder_is_not_taken_for_the_archive_that_came_later(root: Path, data: Data) -> None:
    unpack(small_cifar10(seed=1), root)
    assert_is(load(data), small_cifar10(seed=1))
    shutil.rmtree(root / FOLDER)
    (root / NAME).write_bytes(small_cifar10().archive)
    assert_is(load(data), small_cifar10())


# The command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("data.url=null", "data.url"),
        ("data.url=[]", "data.url"),
        ("data.url=5", "data.url"),
        ("data.url=[5]", "data.url"),
        ("data.sha256=null", "data.sha256"),
        ("data.sha256=short", "data.sha256"),
        ("data.root=null", "data.root"),
        ("data.image_size=4", "data.image_size"),
        ("data.image_size=33", "data.image_size=33: averages down, so it must be 32 or less"),
        ("data.split=train", "data.split"),
        ("data.mean=none", "data.mean"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(
    tmp_path: Path,
    dead_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    word: str,
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"data.root={tmp_path / 'root'}", f"data.url={dead_url}", word]
    key = word.split("=", maxsplit=1)[0]
    words = [w for w in words if w == word or not w.startswith(f"{key}=")]
    assert cli.main(["data", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert list(tmp_path.iterdir()) == []


def train_words(root: Path, out: Path, url: str, sha256: str) -> list[str]:
    return [
        "train",
        "model=plain",
        "depth=8",
        "recipe.iterations=2",
        "recipe.batch_size=16",
        "threads=1",
        f"data.root={root}",
        f"data.url={url}",
        f"data.sha256={sha256}",
        f"outputs={out}",
    ]


def assert_trained(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["iteration"] == "2"
    for row in rows:
        assert all(np.isfinite(float(value)) for value in row.values())
        assert 0 <= float(row["train_error"]) <= 100
        assert 0 <= float(row["test_error"]) <= 100


def test_training_without_a_network_says_how_to_give_the_archive_by_hand(
    run_command: Run, tmp_path: Path, dead_url: str
) -> None:
    root = tmp_path / "root"
    status, _, err = run_command(
        "train",
        "model=plain",
        "depth=8",
        "recipe.iterations=2",
        f"data.root={root}",
        f"data.url={dead_url}",
        f"outputs={tmp_path / 'out'}",
    )
    assert status == 1
    (line,) = err.splitlines()
    for part in ("cifar10", NAME, dead_url, str(root / NAME), "data.archive=FILE"):
        assert part in line
    assert files_under(root) == set()


def test_training_fetches_the_archive_and_trains(
    run_command: Run, tmp_path: Path, serve: Serve
) -> None:
    small, root, out = small_cifar10(), tmp_path / "root", tmp_path / "out"
    host = serve(small.archive, cut_after=len(small.archive) // 2, times=1)
    status, _, err = run_command(*train_words(root, out, host.url, small.sha256))
    assert (status, err) == (0, "")
    assert_trained(out / "cifar10" / "plain-8-s0")
    assert (root / NAME).read_bytes() == small.archive
    assert host.sent == len(small.archive)


def test_two_trainings_at_once_fetch_once(
    start_command: Callable[..., Any], tmp_path: Path, serve: Serve
) -> None:
    small, root, out = small_cifar10(), tmp_path / "root", tmp_path / "out"
    host = serve(small.archive)
    host.open.clear()
    words = train_words(root, out, host.url, small.sha256)
    outputs = [Output(start_command(*words, f"seed={seed}")) for seed in (0, 1)]
    wait_until(lambda: any("waiting for it" in output.text for output in outputs))
    host.open.set()
    assert [output.end() for output in outputs] == [(0, ""), (0, "")]
    assert host.ranges == [None]
    for seed in (0, 1):
        assert_trained(out / "cifar10" / f"plain-8-s{seed}")


def test_the_data_command_fetches_and_prepares_ahead(
    run_command: Run, tmp_path: Path, serve: Serve
) -> None:
    small, root = small_cifar10(), tmp_path / "root"
    host = serve(small.archive)
    words = ["data", "data=cifar10", f"data.root={root}", f"data.url={host.url}"]
    words.append(f"data.sha256={small.sha256}")
    status, out, err = run_command(*words)
    assert (status, err) == (0, "")
    assert "100 training and 20 test images of 32x32 pixels in 3 channels, 10 classes" in out
    assert run_command(*words) == (status, out, err)
    assert len(host.requests) == 1
    assert small.train_images.tobytes() in next(root.rglob("train_images.npy")).read_bytes()


def test_the_data_command_takes_an_archive_that_was_fetched_by_hand(
    run_command: Run, tmp_path: Path, dead_url: str
) -> None:
    by_hand = tmp_path / "by-hand.tar.gz"
    by_hand.write_bytes(small_cifar100().archive)
    words = ["data", "data=cifar100", f"data.root={tmp_path / 'root'}", f"data.url={dead_url}"]
    words.append(f"data.archive={by_hand}")
    status, _, err = run_command(*words)
    assert status == 1
    (line,) = err.splitlines()
    assert "is not the official archive" in line
    status, out, err = run_command(*words, f"data.sha256={small_cifar100().sha256}")
    assert (status, err) == (0, "")
    assert "100 classes" in out


def test_a_download_that_is_interrupted_goes_on_with_the_same_command(
    run_command: Run, start_command: Callable[..., Any], tmp_path: Path, serve: Serve
) -> None:
    small, root = small_cifar10(), tmp_path / "root"
    host = serve(small.archive, piece=4096, pause=0.05)
    words = ["data", f"data.root={root}", f"data.url={host.url}", f"data.sha256={small.sha256}"]
    process = start_command(*words)
    part = root / f"{NAME}.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert files_under(root) == {f"{NAME}.part"}
    got = part.stat().st_size
    assert 0 < got < len(small.archive)
    host.behaviour.pause = 0
    status, _, err = run_command(*words)
    assert (status, err) == (0, "")
    assert host.ranges == [None, f"bytes={got}-"]
