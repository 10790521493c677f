"""The training batches and the test images, made on the device from uint8 pixels.

A batch is a pure function of (seed, iteration): which images, and how each is cropped and
flipped. The permuted epochs are one endless stream, so every batch is full. The pixels lie on the
device, or where there are too many of them in host memory, and are copied batch by batch.
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
from resrepro.data.ahead import Ahead, copy_stream

EVALUATION_BATCH = 500
HOST = torch.device("cpu")
DATA_SHARE = 0.5  # of a GPU's free memory that a data set may take: the rest is for the net


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


def on_device(images: int, resident: str, device: torch.device) -> bool:
    """Whether a data set of so many bytes of images is to lie on the device.

    Args:
        images: bytes.
        resident: device, host, or auto, which looks at a GPU's free memory.
        device: where the batches are made.
    """
    if resident == "auto" and device.type == "cuda":
        return fits(images, torch.cuda.mem_get_info(device)[0])
    return resident != "host"


def fits(images: int, free: int) -> bool:
    """Whether so many bytes of images leave enough of a GPU's free memory to the net."""
    return images <= DATA_SHARE * free


class Batches:
    """A data set, as training batches and as evaluation batches on the device.

    Args:
        data: the data set.
        mean: pixel or channel; what is subtracted.
        recipe: the batch size and the augmentation.
        seed: of the order and the augmentation.
        device: where the batches are made and used.
        resident: where the data set lies: device, host, or auto. Changes no number.
    """

    def __init__(
        self,
        data: Dataset,
        mean: str,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        resident: str = "auto",
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, device
        self.mean = torch.from_numpy(mean_of(data.train_images, mean)).to(device)
        here = on_device(data.image_bytes, resident, device)
        self.train = _tensors(data.train_images, data.train_labels, device if here else HOST)
        self.test = _tensors(data.test_images, data.test_labels, device if here else HOST)
        self.ahead = None if here else Ahead(self._gather, device, copy_stream(device))

    def __call__(self, iteration: int) -> tuple[Tensor, Tensor]:
        """The batch of an iteration: images float32 (N, C, H, W) and labels int64 (N,)."""
        if self.ahead:
            pixels, (labels, top, left, flip) = self.ahead(iteration)
        else:
            # One transfer for all four, which does not wait for the device.
            numbers = self._numbers(iteration)
            if self.device.type == "cuda":
                numbers = numbers.pin_memory()
            index, top, left, flip = numbers.to(self.device, non_blocking=True)
            pixels, labels = (tensor[index] for tensor in self.train)
        x = crop_and_flip(self._normalise(pixels), top, left, flip, self.recipe.padding)
        return x.contiguous(memory_format=torch.channels_last), labels

    def unaugmented(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split ("train" or "test") as they are, in large batches."""
        images, labels = self.train if split == "train" else self.test

        def part(number: int) -> tuple[Tensor, Tensor]:
            rows = slice(number * EVALUATION_BATCH, (number + 1) * EVALUATION_BATCH)
            return images[rows], labels[rows]

        parts = Ahead(part, self.device, self.ahead.stream) if self.ahead else part
        for number in range(-(-len(labels) // EVALUATION_BATCH)):
            interruption.check()
            pixels, of_them = parts(number)
            x = self._normalise(pixels)
            yield x.contiguous(memory_format=torch.channels_last), of_them

    def _numbers(self, iteration: int) -> Tensor:
        """Of each image of a batch its index and what is drawn for it, int64 (4, N)."""
        seed, size, padding = self.seed, self.recipe.batch_size, self.recipe.padding
        chosen = batch_indices(seed, iteration, size, len(self.train[1]))
        drawn = augmentation(seed, iteration, size, padding, self.recipe.flip)
        return torch.from_numpy(np.stack((chosen, *drawn)))

    def _gather(self, iteration: int) -> tuple[Tensor, Tensor]:
        """A batch's pixels, and in place of their indices their labels, from host memory."""
        images, labels = self.train
        numbers = self._numbers(iteration)
        pixels = images[numbers[0]]
        numbers[0] = labels[numbers[0]]
        return pixels, numbers

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / 255


def _tensors(images: np.ndarray, labels: np.ndarray, place: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images).to(place), torch.from_numpy(labels).to(place)
