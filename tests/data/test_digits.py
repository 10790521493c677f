import socket

import numpy as np
import pytest
from sklearn import datasets

from resrepro import cli
from resrepro.configuration.schema import Data
from resrepro.data import Dataset, digest_of, load


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(Data(name="digits"))


def rows(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    """Images with their labels as bytes, sorted, so that sets of them can be compared."""
    return sorted(
        image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)
    )


def test_digits_are_grey_bytes_of_eight_by_eight_pixels(digits: Dataset) -> None:
    assert digits.train_images.shape == (1438, 1, 8, 8)
    assert digits.test_images.shape == (359, 1, 8, 8)
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int64
    assert digits.channels == 1
    assert digits.classes == 10


def test_each_image_of_the_file_is_on_one_side_of_the_split(digits: Dataset) -> None:
    bunch = datasets.load_digits()
    stretched = np.round(bunch.images / 16 * 255).astype(np.uint8)
    train = rows(digits.train_images, digits.train_labels)
    test = rows(digits.test_images, digits.test_labels)
    assert sorted(train + test) == rows(stretched, bunch.target)
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 255


def test_the_split_is_stratified(digits: Dataset) -> None:
    train = np.bincount(digits.train_labels, minlength=10)
    test = np.bincount(digits.test_labels, minlength=10)
    assert (np.abs(test - (train + test) / 5) < 1).all()


def test_the_split_is_fixed(digits: Dataset) -> None:
    # Of these very arrays; results are only comparable as long as it stays.
    golden = "889568544e8d98f3b03915cf64334a9181fb125bf3cf20e74527ec15e040267b"
    assert digits.digest == golden
    arrays = digits.train_images, digits.train_labels, digits.test_images, digits.test_labels
    assert digest_of(*arrays) == golden


def test_digits_need_no_network(monkeypatch: pytest.MonkeyPatch, digits: Dataset) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something wants a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load(Data(name="digits")).digest == digits.digest


def test_a_tenth_of_the_training_digits_is_held_out_for_validation(digits: Dataset) -> None:
    held = load(Data(name="digits", split="validation"))
    assert (len(held.train_labels), len(held.test_labels)) == (1294, 144)
    both = rows(held.train_images, held.train_labels) + rows(held.test_images, held.test_labels)
    assert sorted(both) == rows(digits.train_images, digits.train_labels)


def test_a_size_that_digits_do_not_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "data=digits", "data.image_size=16"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.image_size" in line
