"""The training batches and the test images, made on the device from uint8 pixels.

A batch is a pure function of (seed, iteration): which images, and how each is cropped and
flipped. The permuted epochs are one endless stream, so every batch is full.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resrepro import interruption, randomness
from resrepro.configuration.schema import Recipe
from resrepro.data import Dataset

EVALUATION_BATCH = 500


def batch_indices(seed: int, iteration: int, batch_size: int, count: int) -> np.ndarray:
    """The images of a batch (int64), out of a data set of `count`."""
    stream = np.arange(iteration * batch_size, (iteration + 1) * batch_size)
    epochs, places = np.divmod(stream, count)
    indices = np.empty(batch_size, np.int64)
    for epoch in range(epochs[0], epochs[-1] + 1):
        indices[epochs == epoch] = _order(seed, epoch, count)[places[epochs == epoch]]
    return indices


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return randomness.permutation(seed, "order", epoch, count)


def augmentation(
    seed: int, iteration: int, batch_size: int, padding: int, flip: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image's crop offsets (top, left), from 0 to 2 x padding, and whether it is flipped."""
    raw = randomness.integers(seed, "augmentation", iteration, batch_size)
    offsets = np.uint64(2 * padding + 1)
    top, left = (raw >> 32) % offsets, (raw & 0xFFFFFFFF) // 2 % offsets
    flipped = (raw & 1) if flip else np.zeros_like(raw)
    return top.astype(np.int64), left.astype(np.int64), flipped.astype(np.int64)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """A random crop of each zero-padded image or of its mirror image (paper, section 4.2).

    Args:
        images: (N, C, H, W), the mean already subtracted, so that zeros are the mean's colour.
        top: each image's vertical offset (N,), from 0 to 2 x padding.
        left: each image's horizontal offset (N,), from 0 to 2 x padding.
        flip: whether to mirror an image (N,).
        padding: pixels on each side.
    """
    n, _, height, width = images.shape
    mirrored = torch.where(flip.bool().view(n, 1, 1, 1), images.flip(3), images)
    if padding == 0:
        return mirrored
    padded = F.pad(mirrored, (padding,) * 4)
    # All windows of all images as one view; picking one of each copies only those.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(n, device=images.device), :, top, left]


def mean_of(images: np.ndarray, mean: str) -> np.ndarray:
    """The training set's mean in grey levels, float32: per pixel (C, H, W) or channel (C, 1, 1)."""
    per_pixel = images.mean(axis=0, dtype=np.float64)
    if mean == "channel":
        per_pixel = per_pixel.mean(axis=(1, 2), keepdims=True)
    return np.asarray(per_pixel, np.float32)


class Batches:
    """A data set on the device, as training batches and as evaluation batches.

    Args:
        data: the data set.
        mean: pixel or channel; what is subtracted.
        recipe: the batch size and the augmentation.
        seed: of the order and the augmentation.
        device: where the batches are made and used.
    """

    def __init__(
        self, data: Dataset, mean: str, recipe: Recipe, seed: int, device: torch.device
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device
        self.mean = torch.from_numpy(mean_of(data.train_images, mean)).to(device)
        self.train = self._to_device(data.train_images, data.train_labels)
        self.test = self._to_device(data.test_images, data.test_labels)

    def _to_device(self, images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(images).to(self.device), torch.from_numpy(labels).to(self.device)

    def __call__(self, iteration: int) -> tuple[Tensor, Tensor]:
        """The batch of an iteration: images float32 (N, C, H, W) and labels int64 (N,)."""
        images, labels = self.train
        seed, size, padding = self.seed, self.recipe.batch_size, self.recipe.padding
        chosen = batch_indices(seed, iteration, size, len(labels))
        drawn = augmentation(seed, iteration, size, padding, self.recipe.flip)
        # One transfer for all four, which does not wait for the device.
        numbers = torch.from_numpy(np.stack((chosen, *drawn)))
        if self.device.type == "cuda":
            numbers = numbers.pin_memory()
        index, top, left, flip = numbers.to(self.device, non_blocking=True)
        x = crop_and_flip(self._normalise(images[index]), top, left, flip, padding)
        return x.contiguous(memory_format=torch.channels_last), labels[index]

    def unaugmented(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split ("train" or "test") as they are, in large batches."""
        images, labels = self.train if split == "train" else self.test
        for start in range(0, len(labels), EVALUATION_BATCH):
            interruption.check()
            part = slice(start, start + EVALUATION_BATCH)
            x = self._normalise(images[part])
            yield x.contiguous(memory_format=torch.channels_last), labels[part]

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / 255
