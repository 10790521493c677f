"""The classification sets of torchvision.datasets, decoded once into arrays."""

import hashlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resrepro import interruption
from resrepro.configuration import schema
from resrepro.data import Dataset
from resrepro.data.pixels import SMALLEST, squared
from resrepro.data.prepared import Arrays, load_or_prepare
from resrepro.errors import ConfigError, ResreproError
from resrepro.files import one_at_a_time
from resrepro.progress import bar

# How each set is asked for its two parts. Other sets lack one of them, or a label an image.
BY_TRAIN = ({"train": True}, {"train": False})
BY_SPLIT = ({"split": "train"}, {"split": "test"})
BY_TRAINVAL = ({"split": "trainval"}, {"split": "test"})
BY_VAL = ({"split": "train"}, {"split": "val"})
FAKE = ({"size": 1000, "random_offset": 0}, {"size": 200, "random_offset": 1000})
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(["CIFAR10", "CIFAR100", "EMNIST", "FashionMNIST", "KMNIST"], BY_TRAIN),
    **dict.fromkeys(["MNIST", "QMNIST", "USPS"], BY_TRAIN),
    **dict.fromkeys(["Country211", "DTD", "Flowers102", "Food101", "GTSRB", "PCAM"], BY_SPLIT),
    **dict.fromkeys(["RenderedSST2", "STL10", "SVHN", "StanfordCars"], BY_SPLIT),
    **dict.fromkeys(["FGVCAircraft", "OxfordIIITPet"], BY_TRAINVAL),
    **dict.fromkeys(["ImageNet", "Imagenette"], BY_VAL),
    "FakeData": FAKE,
}
EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")


def load_torchvision(data: schema.Data) -> Dataset:
    """Fetches a set where it may, decodes it once, and maps it from the cache ever after.

    The cache knows the set by its name and by the paths, sizes and times of change of all files
    in data.root.

    Raises:
        ConfigError: there is no such set, or it has no training and test part.
        ResreproError: torchvision cannot be used, the files cannot be had, or sizes differ.
    """
    for complaint in _complaints(data):
        raise ConfigError(complaint)
    root, cache = Path(str(data.root)).expanduser(), Path(str(data.cache)).expanduser()

    def folder() -> Path:
        words = ("torchvision", data.dataset, data.variant, _fingerprint(data, root, cache))
        return cache / "prepared" / "-".join(filter(None, words))

    def prepare() -> tuple[Arrays, int]:
        return _decode(data, _parts(data, root))

    if (
        not folder().exists()
    ):  # then the files may have to be fetched, and are other ones after that
        lock = cache / "prepared" / f"torchvision-{data.dataset}.lock"
        with one_at_a_time(lock, f"another process is fetching {data.dataset}; waiting for it"):
            _parts(data, root)
    return load_or_prepare(folder(), prepare)


def import_torchvision() -> Any:
    """Torchvision.

    Raises:
        ResreproError: it is missing, or does not fit the PyTorch that is installed.
    """
    import torch

    try:
        import torchvision
    except ImportError as error:
        raise ResreproError(f"torchvision is not installed ({error}); {PAIR}") from error
    except RuntimeError as error:  # its operators are built for another PyTorch
        raise ResreproError(
            f"torchvision does not fit PyTorch {torch.__version__}, which is installed ({error}); "
            f"{PAIR}"
        ) from error
    return torchvision


PAIR = "install a pair that belongs together, such as torch==2.14.1 torchvision==0.29.1"


def _complaints(data: schema.Data) -> Iterator[str]:
    works = ", ".join(sorted(PARTS))
    if data.dataset is None:
        yield f"data.dataset is not given: name one of {works}"
    elif data.dataset not in PARTS:
        there_is = isinstance(getattr(import_torchvision().datasets, data.dataset, None), type)
        why = "has no training and test part with a class for each image"
        yield (
            f"data.dataset={data.dataset}: {why if there_is else 'torchvision has no such set'}; "
            f"these work: {works}"
        )
    if data.dataset == "EMNIST":
        yield from schema.choice("data.variant", data.variant, EMNIST_SPLITS)
    elif data.variant is not None:
        yield f"data.variant={data.variant}: is for EMNIST alone"


def _parts(data: schema.Data, root: Path) -> list[Any]:
    """The training and the test part, as torchvision gives them."""
    kind = getattr(import_torchvision().datasets, str(data.dataset))
    parameters = inspect.signature(kind.__init__).parameters
    common: dict[str, Any] = {"root": str(root)} if "root" in parameters else {}
    if "download" in parameters or data.dataset in ("EMNIST", "QMNIST"):
        common["download"] = bool(data.download)
    if data.variant is not None:
        common["split"] = data.variant
    try:
        if data.download and "root" in parameters:
            root.mkdir(parents=True, exist_ok=True)
        return [kind(**common, **part) for part in PARTS[str(data.dataset)]]
    except (RuntimeError, OSError, ImportError) as error:  # no network, no files, scipy for .mat
        reason = " ".join(str(error).split()).rstrip(".")
        if data.download:
            advice = f"put torchvision's files for it into {root} by hand, with data.download=false"
        else:
            advice = "data.root=DIR names the folder that has torchvision's files for it"
        raise ResreproError(f"{data.dataset} cannot be had ({reason}); {advice}") from error


def _fingerprint(data: schema.Data, root: Path, cache: Path) -> str:
    """Stands for the files as they are now, and for what is made of them."""
    sha256 = hashlib.sha256(f"{root.resolve()}\0{data.image_size}\n".encode())
    for folder, folders, files in os.walk(root):
        kept = [name for name in folders if Path(folder, name) != cache / "prepared"]
        folders[:] = sorted(kept)
        for name in sorted(files):
            stat = Path(folder, name).stat()
            facts = (folder, name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            sha256.update("\0".join(map(str, facts)).encode(errors="surrogateescape"))
    return sha256.hexdigest()[:16]


def _decode(data: schema.Data, parts: list[Any]) -> tuple[Arrays, int]:
    """Both parts as arrays; labels from 0 on, in the order of the set's own."""
    first = parts[0][0][0]
    mode = "L" if first.mode in ("1", "L") else "RGB"
    arrays: list[np.ndarray] = []
    with bar(sum(map(len, parts)), f"decoding {data.dataset}", "image") as progress:
        for part in parts:
            images, labels = [], []
            for index in range(len(part)):
                interruption.check()
                image, label = part[index]
                images.append(_pixels(data, image.convert(mode), first))
                labels.append(int(label))
                progress.update()
            arrays += [np.stack(images), np.array(labels, np.int64)]
    classes = np.unique(arrays[1])
    if not np.isin(arrays[3], classes).all():
        raise ResreproError(
            f"{data.dataset}: its test part has classes that its training part lacks"
        )
    numbered = [np.searchsorted(classes, labels) for labels in (arrays[1], arrays[3])]
    return (arrays[0], numbered[0], arrays[2], numbered[1]), len(classes)


def _pixels(data: schema.Data, image: Image.Image, first: Image.Image) -> np.ndarray:
    """An image as uint8 (C, H, W)."""
    if data.image_size:
        image = squared(image, data.image_size, f"an image of {data.dataset}")
    elif image.size != first.size or image.width != image.height or image.width < SMALLEST:
        raise ResreproError(
            f"{data.dataset} has images of {first.width}x{first.height} and {image.width}x"
            f"{image.height} pixels; give one size to all with data.image_size=N"
        )
    pixels = np.asarray(image)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
