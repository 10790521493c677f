"""Changing the size of images."""

import numpy as np
from PIL import Image

SMALLEST = 8  # pixels a side: the net halves the map twice


def squared(image: Image.Image, size: int) -> Image.Image:
    """An image's largest central square, area-averaged to size x size pixels."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if side % size == 0:
        return image.reduce(side // size, box)  # rounds once, where resize rounds twice
    return image.resize((size, size), Image.Resampling.BOX, box)


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Area-averages uint8 colour images (N, 3, H, W) to (N, 3, size, size)."""
    smaller = np.empty((len(images), 3, size, size), np.uint8)
    for i, image in enumerate(images):
        picture = squared(Image.fromarray(image.transpose(1, 2, 0)), size)
        smaller[i] = np.asarray(picture).transpose(2, 0, 1)
    return smaller
