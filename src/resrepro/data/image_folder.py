"""A user's own images: DIR/train/<class>/* and DIR/test/<class>/*."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from resrepro import interruption
from resrepro.configuration import schema
from resrepro.data import Dataset
from resrepro.data.pixels import SMALLEST, squared
from resrepro.data.prepared import Arrays, load_or_prepare
from resrepro.errors import ResreproError
from resrepro.progress import bar

Classes = dict[str, list[Path]]
DECODING = 2  # a number for how pixels are made of a file: another one, and all are decoded anew


@dataclass(frozen=True)
class Split:
    """What lies in train/ or test/.

    Attributes:
        classes: the images of each class, both in alphabetical order.
        deeper: images in folders within a class's.
        others: files that are no images of a class.
    """

    classes: Classes
    deeper: list[Path]
    others: list[Path]


def load_image_folder(data: schema.Data) -> Dataset:
    """Decodes the images once, in colour, and maps them from the cache ever after.

    The cache knows the images by their paths, sizes and times of change. Both times: a folder out
    of an archive may have its files' own, as old as those of another folder.

    Raises:
        ResreproError: the folder lacks something, an image is broken, or sizes differ.
    """
    root, cache = Path(str(data.root)).expanduser(), Path(str(data.cache)).expanduser()
    train, test = (_split(root / split) for split in ("train", "test"))
    names = list(train.classes)
    if len(names) < 2:
        raise ResreproError(f"{root}/train has one class ({names[0]}); two or more are needed")
    if names != list(test.classes):
        odd = sorted(set(names) ^ set(test.classes))
        raise ResreproError(
            f"{root}: train and test must have the same classes, but {', '.join(odd[:5])} "
            f"{'is' if len(odd) == 1 else 'are'} in only one of them"
        )

    splits = train.classes, test.classes

    def prepare() -> tuple[Arrays, int]:
        return _decode(splits, data.image_size), len(names)

    folder = cache / f"image_folder-{_fingerprint(root, splits, data.image_size)}"
    dataset = load_or_prepare(folder, prepare)
    return replace(dataset, note="; ".join(_notes(root, [train, test])))


def _notes(root: Path, splits: list[Split]) -> Iterator[str]:
    """What of the folder's content was not taken as its user may have meant it."""
    deeper = [file for split in splits for file in split.deeper]
    others = [file for split in splits for file in split.others]
    if deeper:
        yield (
            f"images in folders within a class are that class's: {len(deeper):,}, such as "
            f"{deeper[0].relative_to(root)}"
        )
    if others:
        yield (
            f"files that are no images of a class are left out: {len(others):,}, such as "
            f"{others[0].relative_to(root)}"
        )


def _split(folder: Path) -> Split:
    """Looks through train/ or test/; hidden files and folders are passed over."""
    if not folder.is_dir():
        raise ResreproError(
            f"{folder} is missing: data.root must hold train/<class>/ and test/<class>/"
        )
    extensions = Image.registered_extensions()
    known = {extension for extension, form in extensions.items() if form in Image.OPEN}
    split = Split({}, [], [])
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        if not child.is_dir():
            split.others.append(child)
            continue
        files = list(_files(child, frozenset()))
        images = [file for file in files if file.suffix.lower() in known]
        if not images:
            raise ResreproError(f"{child} holds no images; fill it or remove the class")
        split.classes[child.name] = images
        split.deeper.extend(file for file in images if file.parent != child)
        split.others.extend(file for file in files if file.suffix.lower() not in known)
    if not split.classes:
        raise ResreproError(f"{folder} has no classes: each needs a folder of images in it")
    return split


def _files(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """The files in a folder and in those within it; a link to a folder above leads nowhere."""
    here = folder.resolve()
    if here not in above:
        for child in sorted(folder.iterdir()):
            if child.name.startswith("."):
                continue
            if child.is_dir():
                yield from _files(child, above | {here})
            else:
                yield child


def _fingerprint(root: Path, splits: tuple[Classes, Classes], size: int | None) -> str:
    words = f"{root.resolve()}\0{size}\0{DECODING}\n"
    sha256 = hashlib.sha256(words.encode(errors="surrogateescape"))
    for classes in splits:
        for files in classes.values():
            for file in files:
                stat = file.stat()
                facts = (file.relative_to(root), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                line = "\0".join(map(str, facts)) + "\n"
                sha256.update(line.encode(errors="surrogateescape"))
    return sha256.hexdigest()[:16]


def _decode(splits: tuple[Classes, Classes], size: int | None) -> Arrays:
    """Both splits as arrays. Without a size all images must be squares of the first one's."""
    total = sum(len(files) for classes in splits for files in classes.values())
    first = next(iter(splits[0].values()))[0]
    image = _open(first)
    if not size and image.width != image.height:
        raise ResreproError(
            f"{first} is {image.width}x{image.height} pixels, and no square; data.image_size=N "
            "averages the central square of each image down to one size"
        )
    side = squared(image, size, first).width if size else image.width
    arrays: list[np.ndarray] = []
    with bar(total, "decoding images", "image") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damage in what cameras note beside pixels
        for classes in splits:
            count = sum(len(files) for files in classes.values())
            images = np.empty((count, 3, side, side), np.uint8)
            labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
            for i, file in enumerate(f for files in classes.values() for f in files):
                interruption.check()
                image = _open(file)
                if size:
                    image = squared(image, size, file)
                elif image.size != (side, side):
                    raise ResreproError(
                        f"{file} is {image.width}x{image.height} pixels, and {first} asks for "
                        f"{side}x{side}; give one size to all with data.image_size=N"
                    )
                images[i] = np.asarray(image).transpose(2, 0, 1)
                progress.update()
            arrays += [images, labels.astype(np.int64)]
    if side < SMALLEST:
        raise ResreproError(f"{first} is {side} pixels wide; {SMALLEST} or more are needed")
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _open(file: Path) -> Image.Image:
    """An image in colour, upright."""
    try:
        with Image.open(file) as image:
            # Of mode I (32 bits) are 16-bit files of these formats, with some versions of Pillow.
            if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
                raise ValueError("its pixels are not of 8 or 16 bits; what is white cannot be told")
            upright = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
                return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
            return upright.convert("RGB")
    except Exception as error:  # Pillow raises anything for a damaged file
        raise ResreproError(f"{file} cannot be decoded ({error}); mend or remove it") from error
