import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resrepro import cli, interruption
from resrepro.configuration.schema import Data
from resrepro.data import Dataset, load
from resrepro.errors import Interrupted, ResreproError

SIZE = 12


def pixels(name: str, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """An image (H, W, 3) that belongs to a name."""
    return np.random.default_rng(list(name.encode())).integers(0, 256, (height, width, 3), np.uint8)


def write(file: Path, height: int = SIZE, width: int = SIZE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(file.stem, height, width)).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, with 2, 3 and 1 images to train on and one each to test on."""
    root = tmp_path / "images"
    for file in ("cat/a", "cat/b", "dog/c", "dog/d", "dog/e", "axolotl/f"):
        write(root / "train" / f"{file}.png")
    for file in ("cat/g", "dog/h", "axolotl/i"):
        write(root / "test" / f"{file}.png")
    return root


def open_folder(root: Path, image_size: int | None = None) -> Dataset:
    cache = root.parent / "cache"
    return load(Data(name="image_folder", root=str(root), cache=str(cache), image_size=image_size))


def as_pixels(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) to (N, H, W, C)."""
    return images.transpose(0, 2, 3, 1)


def assert_refused(root: Path, *words: str) -> None:
    """The folder is refused with one line that has these words in it, and nothing is kept."""
    with pytest.raises(ResreproError) as caught:
        open_folder(root)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    cache = root.parent / "cache"
    assert [f.name for f in cache.glob("*") if f.suffix != ".lock"] == []


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image is opened")

    monkeypatch.setattr(Image, "open", refuse)


def test_images_are_those_of_the_files_with_classes_and_names_in_alphabetical_order(
    root: Path,
) -> None:
    data = open_folder(root)
    np.testing.assert_array_equal(as_pixels(data.train_images), [pixels(name) for name in "fabcde"])
    assert data.train_labels.tolist() == [0, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(as_pixels(data.test_images), [pixels(name) for name in "igh"])
    assert data.test_labels.tolist() == [0, 1, 2]
    assert data.classes == 3
    assert data.train_images.dtype == np.uint8
    assert data.train_labels.dtype == np.int64


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "bmp", "gif", "webp", "ppm", "TIF", "PNG"])
def test_every_common_format_is_decoded(root: Path, suffix: str) -> None:
    file = root / "train" / "axolotl" / f"z.{suffix}"
    Image.fromarray(pixels("z")).save(file)
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(as_pixels(open_folder(root).train_images)[1], expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_images_of_every_mode_become_colour(root: Path, mode: str) -> None:
    colour = Image.fromarray(pixels("z"))
    if mode == "I;16":  # 16 bits of grey: the upper byte counts
        grey = np.asarray(colour.convert("L"))
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        expected = np.stack([grey] * 3, axis=2)
    else:
        image = colour.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    file = root / "train" / "axolotl" / ("z.tif" if mode == "CMYK" else "z.png")
    image.save(file)
    np.testing.assert_array_equal(as_pixels(open_folder(root).train_images)[1], expected)


def test_an_opaque_image_with_an_alpha_channel_keeps_its_colours(root: Path) -> None:
    opaque = np.dstack([pixels("z"), np.full((SIZE, SIZE), 255, np.uint8)])
    Image.fromarray(opaque).save(root / "train" / "axolotl" / "z.png")
    np.testing.assert_array_equal(as_pixels(open_folder(root).train_images)[1], pixels("z"))


def test_what_is_no_image_is_ignored(root: Path) -> None:
    before = open_folder(root).digest
    cat = root / "train" / "cat"
    for name in ("notes.txt", "Thumbs.db", ".DS_Store", ".a.png", "labels.csv", "README", "a.npy"):
        (cat / name).write_text("no image")
    (root / "train" / "list.txt").write_text("in no class")
    (root / "train" / ".cache").mkdir()
    (cat / ".cache").mkdir()
    write(cat / ".cache" / "a.png")
    data = open_folder(root)
    assert data.digest == before
    assert data.note == (  # of the files that are not hidden
        "files that are no images of a class are left out: 6, such as train/cat/README"
    )
    assert str(data).endswith(f"\n{data.note}")


def test_images_in_folders_within_a_class_are_that_class_s(root: Path) -> None:
    assert open_folder(root).note == ""
    write(root / "train/cat/ab/z.png")
    (root / "train/cat/ab/loop").symlink_to(root / "train/cat")
    (root / "test/dog").rename(root / "elsewhere")
    (root / "test/dog").mkdir()
    (root / "test/dog/linked").symlink_to(root / "elsewhere")
    data = open_folder(root)
    np.testing.assert_array_equal(
        as_pixels(data.train_images), [pixels(name) for name in "fazbcde"]
    )
    assert data.train_labels.tolist() == [0, 1, 1, 1, 2, 2, 2]
    np.testing.assert_array_equal(as_pixels(data.test_images), [pixels(name) for name in "igh"])
    assert data.note == (
        "images in folders within a class are that class's: 2, such as train/cat/ab/z.png"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_noted(root: Path, orientation: int) -> None:
    lying = pixels("z")
    turned = {
        1: lying,
        2: lying[:, ::-1],
        3: lying[::-1, ::-1],
        4: lying[::-1],
        5: lying.transpose(1, 0, 2),
        6: lying[::-1].transpose(1, 0, 2),
        7: lying[::-1, ::-1].transpose(1, 0, 2),
        8: lying.transpose(1, 0, 2)[::-1],
    }
    image = Image.fromarray(lying)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(root / "train/axolotl/z.png", exif=exif)
    np.testing.assert_array_equal(as_pixels(open_folder(root).train_images)[1], turned[orientation])


def test_damage_in_what_a_camera_noted_harms_no_image(
    root: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    image = Image.fromarray(pixels("z"))
    image.save(root / "train/axolotl/z.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff")
    np.testing.assert_array_equal(as_pixels(open_folder(root).train_images)[1], pixels("z"))
    assert not recwarn.list


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_whose_white_cannot_be_told_are_refused(root: Path, kind: type) -> None:
    file = root / "train/axolotl/f.tif"
    Image.fromarray(np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE).astype(kind)).save(file)
    assert_refused(root, f"{file} cannot be decoded", "8 or 16 bits")


@pytest.mark.parametrize(("size", "name"), [(13, "train/axolotl/f"), (11, "test/cat/g")])
def test_no_image_is_enlarged(root: Path, size: int, name: str) -> None:
    write(root / "test/cat/g.png", 10, 20)
    with pytest.raises(
        ResreproError, match=f"only averages down; give {SIZE if size > SIZE else 10} or less"
    ) as caught:
        open_folder(root, size)
    assert str(root / f"{name}.png") in str(caught.value)


def test_a_size_that_no_image_has_is_not_advised(root: Path) -> None:
    write(root / "test/cat/g.png", 2, 2)
    with pytest.raises(ResreproError, match="only averages down; 8 or more are needed"):
        open_folder(root, 10)


def test_images_that_are_no_squares_need_a_size(tmp_path: Path) -> None:
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        write(tmp_path / place / "g.png", 16, 12)
    assert_refused(tmp_path, "is 12x16 pixels, and no square; data.image_size=N", "")


def test_a_huge_size_is_refused_before_memory_is_asked_for(root: Path) -> None:
    with pytest.raises(ResreproError, match="only averages down"):
        open_folder(root, 100_000)


def test_a_document_that_pillow_can_only_write_is_ignored(root: Path) -> None:
    (root / "train" / "cat" / "licence.pdf").write_bytes(b"%PDF-1.4")
    assert len(open_folder(root).train_labels) == 6


def test_images_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_folder(root)
    refuse_to_decode(monkeypatch)
    second = open_folder(root)
    assert second.digest == first.digest
    assert isinstance(second.train_images, np.memmap)
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_a_damaged_cache_is_made_again(root: Path) -> None:
    first = open_folder(root)
    (cached,) = root.parent.glob("cache/*/train_images.npy")
    content = cached.read_bytes()
    cached.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert open_folder(root).digest == first.digest
    assert cached.read_bytes() == content


@pytest.mark.parametrize("in_place", [False, True])
def test_the_cache_tells_folders_apart_that_differ_in_pixels_alone(
    tmp_path: Path, in_place: bool
) -> None:
    """As out of an archive with fixed times: the same names, sizes and times of change."""

    def make(root: Path, seed: int) -> Path:
        chance = np.random.default_rng(seed)
        for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
            (root / place).mkdir(parents=True, exist_ok=True)
            file = root / place / "0.bmp"
            Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
            os.utime(file, (0, 0))
        return root

    first = open_folder(make(tmp_path / "one", 1))
    time.sleep(0.05)  # more than the clock's grain on any file system that has a time of change
    second = open_folder(make(tmp_path / ("one" if in_place else "other"), 2))
    assert first.digest != second.digest
    assert not np.array_equal(first.train_images, second.train_images)


def rewrite(file: Path) -> None:
    """Another image in as many bytes."""
    size = file.stat().st_size
    Image.fromarray(pixels("rewritten")).save(file, format="bmp")
    assert file.stat().st_size == size


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda root: rewrite(root / "train/cat/a.png"),
    "a test image rewritten": lambda root: rewrite(root / "test/cat/g.png"),
    "rewritten in the same instant": lambda root: write_larger(root / "train/cat/a.png"),
    "added": lambda root: write(root / "train/cat/aa.png"),
    "removed": lambda root: (root / "train/cat/a.png").unlink(),
    "moved to the class that follows": lambda root: (root / "train/cat/b.png").rename(
        root / "train/dog/b.png"
    ),
    "moved to another class": lambda root: (root / "train/cat/a.png").rename(
        root / "train/dog/a.png"
    ),
    "moved to the other split": lambda root: (root / "train/cat/a.png").rename(
        root / "test/cat/a.png"
    ),
    "exchanged": lambda root: exchange(root / "train/cat/a.png", root / "train/dog/c.png"),
}


def write_larger(file: Path) -> None:
    """Another image in more bytes, with the old one's time."""
    time = file.stat().st_mtime_ns
    Image.fromarray(pixels("rewritten")).convert("RGBA").save(file, format="bmp")
    os.utime(file, ns=(time, time))


def exchange(one: Path, other: Path) -> None:
    middle = one.with_name("middle")
    one.rename(middle)
    other.rename(one)
    middle.rename(other)


@pytest.mark.parametrize("change", list(CHANGES.values()), ids=list(CHANGES))
def test_images_that_changed_are_decoded_again(
    root: Path, change: Callable[[Path], object]
) -> None:
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        Image.open(file).convert("RGB").save(file, format="bmp")  # all in as many bytes
        os.utime(file, ns=(i, i))
    before = open_folder(root)
    change(root)
    after = open_folder(root)
    assert after.digest != before.digest
    fresh = root.parent / "cache"
    shutil.rmtree(fresh)
    assert open_folder(root).digest == after.digest


def test_the_size_is_part_of_what_the_cache_is_known_by(root: Path) -> None:
    assert [open_folder(root, size).train_images.shape[2:] for size in (None, 8, 10, None, 8)] == [
        (12, 12),
        (8, 8),
        (10, 10),
        (12, 12),
        (8, 8),
    ]


def test_an_interrupted_preparation_leaves_nothing_and_goes_well_the_next_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []

    def interrupt() -> None:
        checks.append(None)
        if len(checks) == 3:
            raise Interrupted(2)

    with monkeypatch.context() as patched:
        patched.setattr(interruption, "check", interrupt)
        with pytest.raises(Interrupted):
            open_folder(root)
    assert [f.name for f in root.parent.glob("cache/*") if f.suffix != ".lock"] == []
    assert len(open_folder(root).train_labels) == 6


def assert_averaged(images: np.ndarray, exact: np.ndarray) -> None:
    """To a grey level: Pillow rounds twice, once for each direction."""
    assert np.abs(images - exact).max() <= 1


def test_a_size_averages_areas(root: Path) -> None:
    for file in root.rglob("*.png"):
        write(file, 24, 24)
    images = as_pixels(open_folder(root, 8).train_images)
    exact = np.stack([pixels(name, 24, 24) for name in "fabcde"]).astype(float)
    exact = exact.reshape(6, 8, 3, 8, 3, 3).mean(axis=(2, 4))
    assert_averaged(images, exact)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (40, 24)])
def test_of_an_oblong_image_the_middle_is_taken(root: Path, height: int, width: int) -> None:
    write(root / "train/axolotl/f.png", height, width)
    top, left = (height - 24) // 2, (width - 24) // 2
    middle = pixels("f", height, width)[top : top + 24, left : left + 24].astype(float)
    exact = middle.reshape(8, 3, 8, 3, 3).mean(axis=(1, 3))
    image = as_pixels(open_folder(root, 8).train_images)[0]
    assert_averaged(image, exact)


def test_images_of_many_sizes_become_one_size(root: Path) -> None:
    write(root / "train/cat/a.png", 100, 37)
    write(root / "test/cat/g.png", 16, 9)
    data = open_folder(root, 9)
    assert data.train_images.shape == (6, 3, 9, 9)
    assert data.test_images.shape == (3, 3, 9, 9)


# What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_that_is_missing(root: Path, split: str) -> None:
    shutil.rmtree(root / split)
    assert_refused(root, f"{root / split} is missing", "train/<class>/ and test/<class>/")
    (root / split).write_text("no folder")
    assert_refused(root, f"{root / split} is missing")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_classes(root: Path, split: str) -> None:
    shutil.rmtree(root / split)
    (root / split).mkdir()
    assert_refused(root, f"{root / split} has no classes")
    write(root / split / "in no class.png")
    assert_refused(root, f"{root / split} has no classes")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images(root: Path, split: str) -> None:
    shutil.rmtree(root / split / "cat")
    (root / split / "cat").mkdir()
    assert_refused(root, f"{root / split / 'cat'} holds no images")
    (root / split / "cat" / "notes.txt").write_text("no image")
    assert_refused(root, f"{root / split / 'cat'} holds no images")


def test_one_class(root: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(root / split / "dog")
        shutil.rmtree(root / split / "axolotl")
    assert_refused(root, "one class (cat)", "two or more")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_is_in_one_split_only(root: Path, split: str) -> None:
    shutil.rmtree(root / split / "dog")
    assert_refused(root, "same classes", "dog is in only one")


def test_classes_that_differ(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "wolf")
    assert_refused(root, "same classes", "dog, wolf are in only one")


def png_of_size(side: int) -> bytes:
    """A PNG whose header promises more pixels than there are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def cut(file: Path) -> bytes:
    return file.read_bytes()[: file.stat().st_size // 2]


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", bytes(1000), cut, png_of_size(SIZE), png_of_size(100_000)],
    ids=["empty", "text", "zeros", "cut short", "no pixels", "promises 10 gigapixels"],
)
@pytest.mark.parametrize("name", ["train/cat/b", "test/axolotl/i", "train/axolotl/f"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_broken_image_is_named(
    root: Path,
    content: bytes | Callable[[Path], bytes],
    name: str,
    suffix: str,
) -> None:
    (root / f"{name}.png").unlink()
    file = root / f"{name}.{suffix}"
    write(file)
    file.write_bytes(content(file) if callable(content) else content)
    assert_refused(root, f"{file} cannot be decoded")


def test_a_broken_image_that_was_mended_is_decoded(root: Path) -> None:
    file = root / "train/cat/b.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert_refused(root, str(file))
    file.write_bytes(whole)
    np.testing.assert_array_equal(as_pixels(open_folder(root).train_images)[2], pixels("b"))


@pytest.mark.parametrize("name", ["train/dog/d", "test/dog/h"])
@pytest.mark.parametrize(("height", "width"), [(SIZE, 13), (13, SIZE), (24, 24)])
def test_images_of_different_sizes_without_a_size_for_all(
    root: Path, name: str, height: int, width: int
) -> None:
    file = root / f"{name}.png"
    write(file, height, width)
    first = root / "train/axolotl/f.png"
    assert_refused(root, f"{file} is {width}x{height}", str(first), "data.image_size=")


def test_oblong_images_without_a_size(root: Path) -> None:
    for file in root.rglob("*.png"):
        write(file, 16, 24)
    assert_refused(root, "24x16", "data.image_size=")


def test_images_that_are_too_small(root: Path) -> None:
    for file in root.rglob("*.png"):
        write(file, 7, 7)
    assert_refused(root, str(root / "train/axolotl/f.png"), "7 pixels", "8 or more")


def command(*words: object) -> int:
    return cli.main(["data", "data=image_folder", *map(str, words)])


def test_the_command_prepares_a_folder(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"data.root={root}", f"data.cache={tmp_path / 'cache'}", "data.image_size=8"
    assert command(*words) == 0
    captured = capsys.readouterr()
    assert "6 training and 3 test images of 8x8 pixels in 3 channels, 3 classes" in captured.out
    assert open_folder(root, 8).digest in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("image_size", ["0", "-16", "7", "1.5", "small"])
def test_the_command_refuses_a_size_that_cannot_be(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], image_size: str
) -> None:
    assert command(f"data.root={root}", f"data.image_size={image_size}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "image_size" in line


def test_the_command_refuses_a_root_that_is_missing_or_not_given(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(f"data.root={root / 'nowhere'}") == 2
    assert command() == 2
    missing, not_given = capsys.readouterr().err.splitlines()
    assert f"data.root={root / 'nowhere'}" in missing
    assert "data.root" in not_given


def test_the_command_tells_of_a_broken_image_in_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train/cat/b.png").write_bytes(b"no image")
    assert command(f"data.root={root}", f"data.cache={tmp_path / 'cache'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(root / "train/cat/b.png") in line
