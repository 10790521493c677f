"""A user's own images: DIR/train/<class>/* and DIR/test/<class>/*."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from resrepro import interruption
from resrepro.configuration import schema
from resrepro.data import Dataset
from resrepro.data.pixels import SMALLEST, squared
from resrepro.data.prepared import Arrays, load_or_prepare
from resrepro.errors import ResreproError
from resrepro.progress import bar


def load_image_folder(data: schema.Data) -> Dataset:
    """Decodes the images once, in colour, and maps them from the cache ever after.

    The cache knows the images by their paths, sizes and times of change. Both times: a folder out
    of an archive may have its files' own, as old as those of another folder.

    Raises:
        ResreproError: the folder lacks something, an image is broken, or sizes differ.
    """
    root, cache = Path(str(data.root)).expanduser(), Path(str(data.cache)).expanduser()
    splits = {split: _classes(root / split) for split in ("train", "test")}
    names = list(splits["train"])
    if len(names) < 2:
        raise ResreproError(f"{root}/train has one class ({names[0]}); two or more are needed")
    if names != list(splits["test"]):
        odd = sorted(set(names) ^ set(splits["test"]))
        raise ResreproError(
            f"{root}: train and test must have the same classes, but {', '.join(odd[:5])} "
            f"{'is' if len(odd) == 1 else 'are'} in only one of them"
        )

    def prepare() -> tuple[Arrays, int]:
        return _decode(splits, data.image_size), len(names)

    folder = cache / f"image_folder-{_fingerprint(root, splits, data.image_size)}"
    return load_or_prepare(folder, prepare)


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class under train/ or test/, both in alphabetical order."""
    if not folder.is_dir():
        raise ResreproError(
            f"{folder} is missing: data.root must hold train/<class>/ and test/<class>/"
        )
    extensions = Image.registered_extensions()
    known = {extension for extension, form in extensions.items() if form in Image.OPEN}
    classes = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            images = [
                file
                for file in sorted(child.iterdir())
                if file.suffix.lower() in known and not file.name.startswith(".")
            ]
            if not images:
                raise ResreproError(f"{child} holds no images; fill it or remove the class")
            classes[child.name] = images
    if not classes:
        raise ResreproError(f"{folder} has no classes: each needs a folder of images in it")
    return classes


def _fingerprint(root: Path, splits: dict[str, dict[str, list[Path]]], size: int | None) -> str:
    sha256 = hashlib.sha256(f"{root.resolve()}\0{size}\n".encode(errors="surrogateescape"))
    for classes in splits.values():
        for files in classes.values():
            for file in files:
                stat = file.stat()
                facts = (file.relative_to(root), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
                line = "\0".join(map(str, facts)) + "\n"
                sha256.update(line.encode(errors="surrogateescape"))
    return sha256.hexdigest()[:16]


def _decode(splits: dict[str, dict[str, list[Path]]], size: int | None) -> Arrays:
    """Both splits as arrays. Without a size all images must be squares of the first one's."""
    total = sum(len(files) for classes in splits.values() for files in classes.values())
    first = next(iter(splits["train"].values()))[0]
    side = size or _open(first).width
    arrays: list[np.ndarray] = []
    with bar(total, "decoding images", "image") as progress:
        for classes in splits.values():
            count = sum(len(files) for files in classes.values())
            images = np.empty((count, 3, side, side), np.uint8)
            labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
            for i, file in enumerate(f for files in classes.values() for f in files):
                interruption.check()
                image = _open(file)
                if size:
                    image = squared(image, size)
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
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ResreproError(f"{file} cannot be decoded ({error}); mend or remove it") from error
