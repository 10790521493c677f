"""The data sets, each as two arrays of uint8 images with their labels."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from resrepro import extension, randomness
from resrepro.configuration import schema
from resrepro.errors import ResreproError


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, or mapped from a file.

    Attributes:
        train_images: uint8 (N, C, H, W).
        train_labels: int64 (N,), from 0 to classes - 1.
        test_images: uint8 (M, C, H, W).
        test_labels: int64 (M,).
        classes: how many there are.
        digest: SHA-256 of the images and labels; computed where it is not given.
        note: what whoever trains on it should know of how it was made, if anything.

    Raises:
        ResreproError: an array has another type or shape.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int
    digest: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not self.digest:
            for complaint in self._complaints():
                raise ResreproError(complaint)
            arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
            object.__setattr__(self, "digest", digest_of(*arrays))

    def _complaints(self) -> Iterator[str]:
        """What is wrong with arrays that a user's own code made."""
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != np.uint8 or images.ndim != 4:
                what = f"{images.dtype} {images.shape}"
                yield f"{split}_images: must be uint8 (N, C, H, W), not {what}"
            elif labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                what = f"{labels.dtype} {labels.shape}"
                yield f"{split}_labels: must be int64 ({len(images)},), not {what}"
            elif not len(labels) or labels.min() < 0 or labels.max() >= self.classes:
                yield f"{split}_labels: must be there, and from 0 to {self.classes - 1}"
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            yield "train_images and test_images: must be of one size"

    @property
    def channels(self) -> int:
        """3 for colour, 1 for grey."""
        return int(self.train_images.shape[1])

    @property
    def image_bytes(self) -> int:
        """That all images take."""
        return self.train_images.nbytes + self.test_images.nbytes

    def __str__(self) -> str:
        _, channels, height, width = self.train_images.shape
        line = (
            f"{len(self.train_labels):,} training and {len(self.test_labels):,} test images of "
            f"{height}x{width} pixels in {channels} channel{'s' if channels > 1 else ''}, "
            f"{self.classes} classes; SHA-256 {self.digest}"
        )
        return f"{line}\n{self.note}" if self.note else line


def load(data: schema.Data) -> Dataset:
    """Loads a data set; fetches and prepares it first where that has not been done.

    Raises:
        ResreproError: it cannot be had, or is not what it should be.
    """
    # Each of them brings its own library, so only the one that is asked for is imported.
    if make := extension.dataset_of(data.name):
        dataset = make(data)
        if not isinstance(dataset, Dataset):
            raise ResreproError(f"data={data.name}: its function must return a resrepro.Dataset")
    elif data.name == "digits":
        from resrepro.data.digits import load_digits

        dataset = load_digits()
    elif data.name == "image_folder":
        from resrepro.data.image_folder import load_image_folder

        dataset = load_image_folder(data)
    elif data.name == "torchvision":
        from resrepro.data.torchvision import load_torchvision

        dataset = load_torchvision(data)
    else:
        from resrepro.data.cifar import load_cifar

        dataset = load_cifar(data)
    return hold_out(dataset) if data.split == "validation" else dataset


def hold_out(dataset: Dataset) -> Dataset:
    """Replaces the test set by a tenth of the training set (paper: 45k/5k on CIFAR-10).

    Every tenth image of each class in a fixed random order, so the split is stratified.

    Raises:
        ResreproError: a class has too few images to be in both parts.
    """
    labels = dataset.train_labels
    order = randomness.permutation(0, "split", 0, len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[order[::10]] = True
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        if not 0 < np.count_nonzero(held_out[labels == label]) < count:
            raise ResreproError(
                f"data.split=validation: class {label} (the first is 0) has {count} training "
                "images, too few to hold a tenth of them out; 10 or more are needed"
            )
    return replace(
        dataset,
        train_images=dataset.train_images[~held_out],
        train_labels=labels[~held_out],
        test_images=dataset.train_images[held_out],
        test_labels=labels[held_out],
    )


def digest_of(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays' shapes and content."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(f"{array.dtype.str}{array.shape}".encode())
        sha256.update(np.ascontiguousarray(array).data)
    return sha256.hexdigest()
