"""Changing the size of images."""

import numpy as np
from PIL import Image

from resrepro.errors import ResreproError

SMALLEST = 8  # pixels a side: the net halves the map twice


def squared(image: Image.Image, size: int, name: object) -> Image.Image:
    """An image's largest central square, area-averaged to size x size pixels.

    Raises:
        ResreproError: the image is smaller; its `name` is in the message.
    """
    width, height = image.size
    side = min(width, height)
    if side < size:
        what = f"give {side} or less" if side >= SMALLEST else f"{SMALLEST} or more are needed"
        raise ResreproError(
            f"{name} is {width}x{height} pixels, and data.image_size={size} only averages down; "
            f"{what}"
        )
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if side % size == 0:
        return image.reduce(side // size, box)  # rounds once, where resize rounds twice
    return image.resize((size, size), Image.Resampling.BOX, box)


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Area-averages uint8 colour images (N, 3, H, W) to (N, 3, size, size)."""
    smaller = np.empty((len(images), 3, size, size), np.uint8)
    for i, image in enumerate(images):
        picture = squared(Image.fromarray(image.transpose(1, 2, 0)), size, f"image {i}")
        smaller[i] = np.asarray(picture).transpose(2, 0, 1)
    return smaller
