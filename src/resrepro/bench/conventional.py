"""A training loop as most reproductions write it: what `resrepro bench` compares with.

Worker processes crop and flip each image by torchvision's transforms, the net is in PyTorch's own
memory layout, the arithmetic is PyTorch's own default, and loss and error are fetched in every
iteration.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from resrepro.data.torchvision import import_torchvision

PADDING = 4
WORKERS = min(8, os.cpu_count() or 1)  # more are rarely asked for


def transforms(side: int) -> Any:
    """Crop, mirror image, tensor, normalised: from a square PIL image to float32 (3, H, W)."""
    import_torchvision()  # says what is wrong where it cannot be imported
    from torchvision import transforms as T

    return T.Compose(
        [
            T.RandomCrop(side, PADDING),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )


class PilImages(TorchDataset[tuple[Tensor, int]]):
    """Images with transforms, as torchvision.datasets gives them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Images uint8 (N, 3, H, H), labels (N,)."""
        self.images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self.labels = labels
        self.transform = transforms(images.shape[-1])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


@contextmanager
def default_arithmetic() -> Iterator[None]:
    """PyTorch's own: TF32 in cuDNN's convolutions alone, and no search for the fastest kernels."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32)
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = True, False, False
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = before


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
        workers: int = WORKERS,
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
        with default_arithmetic():
            images, labels = next(self.batches)
            images, labels = images.to(self.device), labels.to(self.device)
            output = self.network(images)
            loss = self.criterion(output, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.loss += loss.item()
            self.correct += (output.argmax(1) == labels).sum().item()
