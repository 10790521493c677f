"""torchvision's data sets, from small files made in the official formats."""

import hashlib
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from resrepro.configuration.schema import Data
from resrepro.data import Dataset, load
from resrepro.data.torchvision import PARTS
from resrepro.errors import ConfigError, ResreproError

vision = pytest.importorskip("torchvision")
TRAIN, TEST = 12, 6


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def idx(file: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: magic number, sizes, bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def mnist(root: Path, name: str, stems: tuple[str, str], first_label: int = 0) -> None:
    for stem, count in zip(stems, (TRAIN, TEST), strict=True):
        idx(root / name / "raw" / f"{stem}-images-idx3-ubyte", pixels(count, 28, 28))
        labels = first_label + np.arange(count) % 3
        idx(root / name / "raw" / f"{stem}-labels-idx1-ubyte", labels)


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True, exist_ok=True)
    official = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        file = root / f"{split}_32x32.mat"
        labels = 1 + np.arange(count) % 10  # 10 stands for the digit 0
        images = pixels(count, 32, 32, 3).transpose(1, 2, 3, 0)
        scipy.io.savemat(file, {"X": images, "y": labels[:, np.newaxis]})
        official[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(vision.datasets.SVHN, "split_list", official)


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, folder = vision.datasets.CIFAR10, root / vision.datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, Any]) -> tuple[str, str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(count: int) -> dict[str, Any]:
        return {"data": pixels(count, 3072), "labels": [i % 10 for i in range(count)]}

    monkeypatch.setattr(kind, "train_list", [write("data_batch_1", batch(TRAIN))])
    monkeypatch.setattr(kind, "test_list", [write("test_batch", batch(TEST))])
    name, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(kind, "meta", {"filename": name, "key": "label_names", "md5": md5})


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Dataset]:
    def open_set(dataset: str | None, **more: Any) -> Dataset:
        keys = {"root": str(tmp_path / "root"), "cache": str(tmp_path / "cache")}
        return load(Data(**({"name": "torchvision", "dataset": dataset} | keys | more)))

    return open_set


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_idx_files(name: str, opened: Callable[..., Dataset], tmp_path: Path) -> None:
    mnist(tmp_path / "root", name, ("train", "t10k"))
    data = opened(name)
    assert data.train_images.shape == (TRAIN, 1, 28, 28)
    np.testing.assert_array_equal(data.train_images[:, 0], pixels(TRAIN, 28, 28))
    np.testing.assert_array_equal(data.test_images[:, 0], pixels(TEST, 28, 28))
    assert data.test_labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.classes == 3


def test_emnist_by_its_split_with_labels_from_one_on(
    opened: Callable[..., Dataset], tmp_path: Path
) -> None:
    stems = ("emnist-letters-train", "emnist-letters-test")
    mnist(tmp_path / "root", "EMNIST", stems, first_label=1)
    assert opened("EMNIST", variant="letters").train_labels[:4].tolist() == [0, 1, 2, 0]
    with pytest.raises(ConfigError, match=r"data\.variant=None: must be balanced, .* or mnist"):
        opened("EMNIST")


def test_mat_files(
    opened: Callable[..., Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    svhn(tmp_path / "root", monkeypatch)
    data = opened("SVHN")
    expected = pixels(TRAIN, 32, 32, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.train_images, expected)
    assert data.train_labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_cifars_batches(
    opened: Callable[..., Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar(tmp_path / "root", monkeypatch)
    expected = pixels(TEST, 3072).reshape(TEST, 3, 32, 32)
    np.testing.assert_array_equal(opened("CIFAR10").test_images, expected)


def test_sizes_are_made_one(opened: Callable[..., Dataset], tmp_path: Path) -> None:
    mnist(tmp_path / "root", "MNIST", ("train", "t10k"))
    smaller = opened("MNIST", image_size=14)
    blocks = pixels(TRAIN, 28, 28).reshape(TRAIN, 14, 2, 14, 2).mean((2, 4))
    assert np.abs(smaller.train_images[:, 0] - blocks).max() <= 0.5
    with pytest.raises(ResreproError, match=r"an image of MNIST is 28x28 .*; give 28 or less"):
        opened("MNIST", image_size=29)


def test_a_set_is_decoded_once(
    opened: Callable[..., Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist(tmp_path / "root", "MNIST", ("train", "t10k"))
    first = opened("MNIST")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it is opened again")

    with monkeypatch.context() as patch:
        patch.setattr(vision.datasets, "MNIST", refuse)
        assert opened("MNIST").digest == first.digest
    changed = tmp_path / "root/MNIST/raw/t10k-labels-idx1-ubyte"
    idx(changed, np.zeros(TEST))
    assert opened("MNIST").test_labels.tolist() == [0] * TEST


def test_fake_data_trains(resrepro_here: Callable[..., Any]) -> None:
    words = ("data=torchvision", "data.dataset=FakeData", "data.image_size=8", "depth=8")
    done = resrepro_here("train", *words, "recipe.iterations=2", "device=cpu", "experiment=fake")
    assert (done.status, done.stderr.replace("\r", "")) == (0, "")
    assert "is complete" in done.stdout


def test_every_set_of_the_table_is_torchvisions() -> None:
    assert [name for name in PARTS if not hasattr(vision.datasets, name)] == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (None, r"data\.dataset is not given: name one of CIFAR10, .*SVHN"),
        ("Svhn", r"data\.dataset=Svhn: torchvision has no such set; these work: .*SVHN"),
        ("CocoDetection", "CocoDetection: has no training and test part .*these work: CIFAR10"),
        ("Caltech101", "Caltech101: has no training and test part"),
    ],
)
def test_a_set_that_cannot_be(name: str | None, line: str, opened: Callable[..., Dataset]) -> None:
    with pytest.raises(ConfigError, match=line) as refused:
        opened(name)
    assert "\n" not in str(refused.value)


def test_files_that_are_not_there(opened: Callable[..., Dataset], tmp_path: Path) -> None:
    with pytest.raises(ResreproError, match=r"SVHN cannot be had \(.*\); data\.root=DIR names"):
        opened("SVHN", download=False)


def test_a_variant_is_emnists(opened: Callable[..., Dataset]) -> None:
    with pytest.raises(ConfigError, match=r"data\.variant=letters: is for EMNIST alone"):
        opened("MNIST", variant="letters")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("operator torchvision::nms does not exist"), "torchvision does not fit"),
        (ImportError("No module named torchvision"), "torchvision is not installed"),
    ],
)
def test_a_torchvision_that_cannot_be_imported(
    error: Exception, line: str, opened: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "torchvision":
                raise error

    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    with pytest.raises(ResreproError, match=rf"{line}.*torch==.* torchvision==") as refused:
        opened("MNIST")
    assert "\n" not in str(refused.value)


def test_digits_need_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert load(Data(name="digits")).classes == 10
