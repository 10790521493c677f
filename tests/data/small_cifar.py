"""CIFAR in the official formats, a few noisy images a file."""

import functools
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import dataclass

import numpy as np

IMAGES_A_FILE = 20


@dataclass(frozen=True)
class SmallCifar:
    """A small archive of the binary version, and what is in it.

    Attributes:
        files: the contents by their path in the archive, training files first.
        archive: the tar.gz.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    files: dict[str, bytes]
    archive: bytes

    @property
    def sha256(self) -> str:
        return sha256(self.archive)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def small_cifar10(seed: int = 0) -> SmallCifar:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return _small([f"cifar-10-batches-bin/{name}" for name in names], 10, seed)


@functools.cache
def small_cifar100() -> SmallCifar:
    return _small(["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"], 100, 0)


def _small(paths: list[str], classes: int, seed: int) -> SmallCifar:
    rng = np.random.default_rng([classes, seed])
    images = [random_images(rng, IMAGES_A_FILE) for _ in paths]
    labels = [rng.permutation(np.arange(IMAGES_A_FILE) % classes) for _ in paths]
    # CIFAR-100 has a coarse label of 20 before the fine one.
    coarse = rng.integers(0, 20, (len(paths), IMAGES_A_FILE)) if classes == 100 else None
    files = {
        path: binary_file(images[i], labels[i], None if coarse is None else coarse[i])
        for i, path in enumerate(paths)
    }
    return SmallCifar(
        np.concatenate(images[:-1]),
        np.concatenate(labels[:-1]),
        images[-1],
        labels[-1],
        files,
        tar_gz(files | {f"{paths[0].split('/')[0]}/readme.html": b"<html>"}),
    )


def random_images(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, (count, 3, 32, 32), np.uint8)


def binary_file(images: np.ndarray, labels: np.ndarray, coarse: np.ndarray | None = None) -> bytes:
    """Records of the label, or the coarse and the fine one, then 1,024 bytes a colour."""
    columns = [labels] if coarse is None else [coarse, labels]
    before = np.stack(columns, axis=1).astype(np.uint8)
    return np.concatenate([before, images.reshape(len(images), -1)], axis=1).tobytes()


def tar_gz(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """A tar.gz of files and of further members without content."""
    content = io.BytesIO()
    # Without the time, so that the same files are the same archive.
    with (
        gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        for member in more:
            tar.addfile(member)
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def symbolic_link(path: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def python3_batch(images: np.ndarray, labels: np.ndarray, label_key: str = "labels") -> bytes:
    """A batch as Python 3 pickles it today."""
    batch = {"batch_label": "a batch", label_key: labels.tolist(), "data": images.reshape(-1, 3072)}
    return pickle.dumps(batch, protocol=2)


def python2_batch(images: np.ndarray, labels: np.ndarray, label_key: str = "labels") -> bytes:
    """A batch as Python 2 pickled the official ones: protocol 2, with byte strings."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    pixels = images.tobytes()
    dtype = (
        b"cnumpy\ndtype\n" + short(b"u1") + number(0) + number(1) + b"\x87R"
        b"(" + number(3) + short(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85"
        b"" + short(b"b") + b"\x87R"
        b"(" + number(1) + number(len(images)) + number(3072) + b"\x86" + dtype + b"\x89"
        b"T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    )
    numbers = b"](" + b"".join(number(label) for label in labels.tolist()) + b"e"
    return b"\x80\x02}(" + short(b"data") + array + short(label_key.encode()) + numbers + b"u."
