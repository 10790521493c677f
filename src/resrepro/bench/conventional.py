"""A training loop as most reproductions write it: what `resrepro bench` compares with.

Worker processes decode nothing but crop and flip each image by PIL, the net is in PyTorch's own
memory layout, and loss and error are fetched in every iteration.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

PADDING = 4


class PilImages(TorchDataset[tuple[Tensor, int]]):
    """Images with the transforms that go by the names RandomCrop, Flip, ToTensor and Normalize."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Images uint8 (N, 3, H, W), labels (N,)."""
        self.images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self.labels = labels
        self.mean = torch.full((3, 1, 1), 0.5)
        self.deviation = torch.full((3, 1, 1), 0.25)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index])
        width, height = image.size
        padded = ImageOps.expand(image, PADDING)
        left, top = random.randint(0, 2 * PADDING), random.randint(0, 2 * PADDING)  # noqa: S311
        image = padded.crop((left, top, left + width, top + height))
        if random.random() < 0.5:  # noqa: S311
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub(self.mean).div(self.deviation), int(self.labels[index])


class Conventional:
    """The loop, an iteration at a time.

    Args:
        network: to be trained.
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        batch_size: images an iteration.
        device: where the net lives.
        workers: processes that make batches.
    """

    def __init__(
        self,
        network: nn.Module,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        device: torch.device,
        workers: int = 2,
    ) -> None:
        self.network, self.device = network.to(device), device
        self.loader = DataLoader(
            PilImages(images, labels),
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
        )
        self.batches = self._endless()
        self.loss, self.correct = 0.0, 0

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def iterate(self) -> None:
        """Trains on the next batch."""
        images, labels = next(self.batches)
        images, labels = images.to(self.device), labels.to(self.device)
        output = self.network(images)
        loss = self.criterion(output, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss += loss.item()
        self.correct += (output.argmax(1) == labels).sum().item()
