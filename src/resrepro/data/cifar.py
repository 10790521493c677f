"""CIFAR-10 and CIFAR-100 from their official archives, checked before a byte is parsed.

The binary version is what is fetched: plain records, no pickle. The Python version, which many
have lying about, is read too, from an archive or folder whose digests are the official ones, by
an unpickler that can build nothing but arrays.

torchvision.datasets.CIFAR10 stays out: it reads the Python version alone, unpacked to disk, from
one host. With it two of three mirrors would go, which have the binary version, and so would
reading without a pickle.
"""

import hashlib
import io
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resrepro.configuration import schema
from resrepro.data import Dataset
from resrepro.data.download import fetch, file_digest
from resrepro.data.pixels import shrink
from resrepro.data.prepared import Arrays, load_or_prepare
from resrepro.errors import ConfigError, ResreproError

SIDE = 32
PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class Version:
    """One official form of a data set.

    Attributes:
        archive: the tar's name.
        folder: the folder inside it.
        files: training files first, the test file last.
        digests: where files are checked one by one, their official MD5.
    """

    archive: str
    folder: str
    files: tuple[str, ...]
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Official:
    """A data set's two official forms."""

    classes: int
    label_bytes: int  # before each image of the binary version; the last of them counts
    label_key: str  # of the Python version
    binary: Version
    python: Version
    python_sha256: str


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
OFFICIAL = {
    "cifar10": Official(
        classes=10,
        label_bytes=1,
        label_key="labels",
        binary=Version(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            (*(f"{batch}.bin" for batch in BATCHES), "test_batch.bin"),
        ),
        python=Version(
            "cifar-10-python.tar.gz",
            "cifar-10-batches-py",
            (*BATCHES, "test_batch"),
            (
                "c99cafc152244af753f735de768cd75f",
                "d4bba439e000b95fd0a9bffe97cbabec",
                "54ebc095f3ab1f0389bbae665268c751",
                "634d18415352ddfa80567beed471001a",
                "482c414d41f54cd18b22e5b47cb7c3cb",
                "40351d587109b95175f43aff81a1287e",
            ),
        ),
        python_sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar100": Official(
        classes=100,
        label_bytes=2,
        label_key="fine_labels",
        binary=Version("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin", "test.bin")),
        python=Version(
            "cifar-100-python.tar.gz",
            "cifar-100-python",
            ("train", "test"),
            ("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
        ),
        python_sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
}


def load_cifar(data: schema.Data) -> Dataset:
    """The data set, prepared from the first of: data.archive, what lies in data.root, a mirror.

    Raises:
        ConfigError: a place that it may come from is none.
        ResreproError: it is nowhere to be had, or what there is is not the official data.
    """
    for complaint in _complaints(data):
        raise ConfigError(complaint)
    official = OFFICIAL[data.name]
    root = Path(str(data.root)).expanduser()

    if data.archive is not None and not Path(data.archive).expanduser().is_file():
        raise ResreproError(f"data.archive={data.archive}: there is no such file")

    def prepare() -> tuple[Arrays, int]:
        train_images, train_labels, test_images, test_labels = _read(data, official, root)
        if data.image_size:
            train_images = shrink(train_images, data.image_size)
            test_images = shrink(test_images, data.image_size)
        return (train_images, train_labels, test_images, test_labels), official.classes

    size = f"-{data.image_size}px" if data.image_size else ""
    name = f"{data.name}-{_source(data, official, root)}{size}"
    return load_or_prepare(root / "prepared" / name, prepare)


def _complaints(data: schema.Data) -> Iterator[str]:
    if data.root is None:
        yield "data.root=null: must be the folder for the archive and what is prepared from it"
    urls = data.url if isinstance(data.url, list) else []
    if not urls or not all(isinstance(url, str) and url.startswith("http") for url in urls):
        yield f"data.url={data.url}: must be an address that begins with http, or a list of such"
    if not re.fullmatch("[0-9a-f]{64}", str(data.sha256)):
        yield f"data.sha256={data.sha256}: must be the archive's SHA-256, 64 hexadecimal digits"
    if data.image_size and data.image_size > SIDE:
        yield f"data.image_size={data.image_size}: averages down, so it must be {SIDE} or less"


def _source(data: schema.Data, official: Official, root: Path) -> str:
    """A word for where the data come from: a folder as it is now, or an archive of one digest."""
    found = _folder(official, root) if data.archive is None else None
    if found is None:
        return str(data.sha256)[:8]
    version, folder = found
    sha256 = hashlib.sha256(version.folder.encode())
    for name in version.files:
        file = folder / name
        stat = file.stat() if file.exists() else None
        sha256.update(f"{name} {stat and (stat.st_size, stat.st_mtime_ns)}".encode())
    return f"folder-{sha256.hexdigest()[:8]}"


def _folder(official: Official, root: Path) -> tuple[Version, Path] | None:
    """The unpacked data set in data.root, if there is one."""
    for version in (official.binary, official.python):
        if (root / version.folder).is_dir():
            return version, root / version.folder
    return None


def _read(data: schema.Data, official: Official, root: Path) -> Arrays:
    if data.archive is None:
        if found := _folder(official, root):
            version, folder = found
            return _parse(official, version, _read_folder(folder, version))
        archives = [root / v.archive for v in (official.binary, official.python)]
        archive = next((a for a in archives if a.is_file()), None) or _download(
            data, official, root
        )
    else:
        archive = Path(data.archive).expanduser()
    digest = file_digest(archive)
    accepted = {str(data.sha256): official.binary, official.python_sha256: official.python}
    if digest not in accepted:
        raise ResreproError(
            f"{archive} is not the official archive: its SHA-256 is {digest}, and should be "
            f"{data.sha256}; remove it, or fetch it again from {data.url[0]}"
        )
    return _parse(official, accepted[digest], _read_archive(archive, accepted[digest]))


def _download(data: schema.Data, official: Official, root: Path) -> Path:
    archive = root / official.binary.archive
    try:
        fetch(data.url, archive, str(data.sha256))
    except ResreproError as error:
        raise ResreproError(
            f"{data.name} could not be fetched ({error}); get {official.binary.archive} by hand "
            f"from {data.url[0]} and put it at {archive}, or name it with data.archive=FILE"
        ) from error
    return archive


def _read_archive(archive: Path, version: Version) -> list[bytes]:
    """The files of a version out of its tar, in memory: nothing is unpacked to disk."""
    wanted = {f"{version.folder}/{name}": i for i, name in enumerate(version.files)}
    contents: dict[int, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                index = wanted.get(member.name.removeprefix("./"))
                if index is not None and member.isfile():  # a link could lead anywhere
                    file = tar.extractfile(member)
                    assert file is not None
                    contents[index] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ResreproError(f"{archive} cannot be read: {error}") from error
    if len(contents) < len(wanted):
        lacking = [name for name, i in wanted.items() if i not in contents]
        raise ResreproError(f"{archive} lacks {', '.join(lacking)}")
    return [contents[i] for i in range(len(wanted))]


def _read_folder(folder: Path, version: Version) -> list[bytes]:
    contents = []
    for i, name in enumerate(version.files):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise ResreproError(
                f"{folder / name}: {error.strerror}; the folder is incomplete"
            ) from error
        if version.digests:
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if digest != version.digests[i]:
                raise ResreproError(
                    f"{folder / name} is not the official file: its MD5 is {digest}, and should "
                    f"be {version.digests[i]}; remove the folder or choose another data.root"
                )
        contents.append(content)
    return contents


def _parse(official: Official, version: Version, contents: list[bytes]) -> Arrays:
    parse = parse_binary if version is official.binary else parse_python
    parts = []
    for name, content in zip(version.files, contents, strict=True):
        try:
            parts.append(parse(official, content))
        except ResreproError as error:
            raise ResreproError(f"{version.folder}/{name}: {error}") from error
    images = np.concatenate([images for images, _ in parts[:-1]])
    labels = np.concatenate([labels for _, labels in parts[:-1]])
    return images, labels, *parts[-1]


def parse_binary(official: Official, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records of label bytes and 3,072 pixel bytes to images (N, 3, 32, 32) and labels (N,)."""
    record = official.label_bytes + PIXELS
    if not content or len(content) % record:
        raise ResreproError(
            f"a CIFAR file of {len(content):,} bytes is no row of {record}-byte records"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return _checked(official, records[:, -PIXELS:], records[:, official.label_bytes - 1])


def parse_python(official: Official, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A batch of the Python version to images (N, 3, 32, 32) and labels (N,)."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        return _checked(official, batch["data"], np.asarray(batch[official.label_key]))
    except ResreproError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ResreproError(f"a CIFAR batch cannot be read: {error}") from error


def _checked(
    official: Official, pixels: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if len(labels) != len(pixels) or not len(labels):
        raise ResreproError(f"a CIFAR file holds {len(labels)} labels for {len(pixels)} images")
    if labels.min() < 0 or labels.max() >= official.classes:
        raise ResreproError(f"a CIFAR file holds a label that is not below {official.classes}")
    images = np.ascontiguousarray(pixels, np.uint8).reshape(-1, 3, 32, 32)
    return images, labels.astype(np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and plain containers; a pickle that asks for more is refused."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            module = (
                "numpy._core.multiarray"
                if np.lib.NumpyVersion(np.__version__) >= "2.0.0"
                else module
            )
        elif (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        found: Callable[..., Any] = super().find_class(module, name)
        return found
