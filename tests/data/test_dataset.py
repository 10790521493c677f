import hashlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resrepro.data import Dataset, digest_of, hold_out
from resrepro.errors import ResreproError


def dataset_of(labels: np.ndarray) -> Dataset:
    """Each training image is its number, so that one knows where it came from."""
    count = len(labels)
    images = np.frombuffer(np.arange(count, dtype=np.uint32).tobytes(), np.uint8)
    test_images = np.full((3, 1, 2, 2), 255, np.uint8)
    return Dataset(
        images.reshape(count, 1, 2, 2),
        labels.astype(np.int64),
        test_images,
        np.zeros(3, np.int64),
        classes=int(labels.max()) + 1,
        digest="of all",
    )


def numbers(images: np.ndarray) -> np.ndarray:
    return np.frombuffer(np.ascontiguousarray(images).tobytes(), np.uint32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(10, 99), min_size=1, max_size=6), st.randoms())
def test_a_tenth_of_each_class_is_held_out(counts: list[int], chance: Random) -> None:
    of_images = [label for label, count in enumerate(counts) for _ in range(count)]
    chance.shuffle(of_images)
    labels = np.array(of_images)
    held = hold_out(dataset_of(labels))
    train, test = numbers(held.train_images), numbers(held.test_images)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    np.testing.assert_array_equal(held.train_labels, labels[train])
    np.testing.assert_array_equal(held.test_labels, labels[test])
    whole, part = np.bincount(labels, minlength=6), np.bincount(held.test_labels, minlength=6)
    assert (np.abs(part - whole / 10) < 1).all()
    assert len(test) == -(-len(labels) // 10)


@pytest.mark.parametrize("counts", [[20, 1, 20], [1], [12, 5, 12]])
def test_a_class_too_small_for_both_parts_is_refused(counts: list[int]) -> None:
    small = next(label for label, count in enumerate(counts) if count < 10)
    with pytest.raises(ResreproError, match="10 or more are needed") as caught:
        hold_out(dataset_of(np.repeat(np.arange(len(counts)), counts)))
    assert f"class {small} (the first is 0) has {counts[small]} training images" in str(
        caught.value
    )


def test_cifar_10_is_held_out_as_in_the_paper() -> None:
    held = hold_out(dataset_of(np.arange(50_000) % 10))
    assert (len(held.train_labels), len(held.test_labels)) == (45_000, 5_000)
    assert np.bincount(held.test_labels).tolist() == [500] * 10
    assert np.bincount(held.train_labels).tolist() == [4500] * 10


def test_the_held_out_images_are_the_same_each_time_and_in_no_pattern() -> None:
    dataset = dataset_of(np.zeros(5000, int))
    test = numbers(hold_out(dataset).test_images)
    np.testing.assert_array_equal(test, numbers(hold_out(dataset).test_images))
    # Drawn at random, the distances between them vary by about as much as they are large.
    assert np.diff(np.sort(test)).std() > 5


def test_holding_out_changes_neither_the_data_set_nor_what_it_is_known_by() -> None:
    dataset = dataset_of(np.arange(100) % 3)
    before = dataset.train_images.copy()
    held = hold_out(dataset)
    assert (held.digest, held.classes) == ("of all", 3)
    np.testing.assert_array_equal(dataset.train_images, before)
    assert len(dataset.test_labels) == 3


def test_the_digest_depends_on_content_shape_type_and_order() -> None:
    a, b = np.arange(6, dtype=np.uint8), np.arange(6, 12, dtype=np.uint8)
    changed = a.copy()
    changed[5] = 0
    digests = [
        digest_of(a, b),
        digest_of(b, a),
        digest_of(changed, b),
        digest_of(a.reshape(2, 3), b),
        digest_of(a.view(np.int8), b),
        digest_of(a),
        digest_of(np.concatenate([a, b])),
    ]
    assert len(set(digests)) == len(digests)


def test_the_digest_does_not_depend_on_where_the_array_lies(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int64).reshape(4, 6)
    np.save(tmp_path / "array.npy", array)
    mapped = np.load(tmp_path / "array.npy", mmap_mode="c")
    apart = np.asfortranarray(array)
    strided = np.repeat(array, 2, axis=1)[:, ::2]
    assert {digest_of(array), digest_of(mapped), digest_of(apart), digest_of(strided)} == {
        hashlib.sha256(b"<i8(4, 6)" + array.tobytes()).hexdigest()
    }


def test_a_data_set_says_what_it_is() -> None:
    grey = dataset_of(np.arange(1200) % 3)
    assert str(grey) == (
        "1,200 training and 3 test images of 2x2 pixels in 1 channel, 3 classes; SHA-256 of all"
    )
    colour = Dataset(
        np.zeros((4, 3, 5, 6), np.uint8),
        np.zeros(4, np.int64),
        np.zeros((2, 3, 5, 6), np.uint8),
        np.zeros(2, np.int64),
        classes=1,
        digest="d",
    )
    assert "5x6 pixels in 3 channels" in str(colour)
    assert colour.channels == 3
