"""The layout of the nets for CIFAR (paper, section 4.2), counted in layers as the paper does.

A net of depth 6n+2 is a first 3x3 convolution, then 2n layers each on maps of 32x32, 16x16 and
8x8 pixels with 16, 32 and 64 filters, then global average pooling and a fully connected layer.
The 6n layers are 3n blocks of a family: plain, residual, or a user's own.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resrepro import extension
from resrepro.configuration import schema
from resrepro.errors import ResreproError
from resrepro.networks.blocks import PlainBlock, conv3x3
from resrepro.networks.recomputation import recomputed

MakeBlock = Callable[[int, int, int], nn.Module]  # (channels, filters, stride)


class CifarNet(nn.Module):
    """A net of depth 6n+2 (paper, section 4.2).

    Args:
        depth: weighted layers, 6n+2.
        classes: outputs of the last layer.
        channels: of the images.
        width: filters of the first layer.
        block: makes a block of (channels, filters, stride): a module from (N, channels, H, W) to
            (N, filters, H/stride, W/stride).
        last: makes what follows the last block, of its filters; by default nothing does.

    Attributes:
        recompute: whether a training step keeps only the blocks' inputs, and computes the maps
            inside them once more for the gradients.

    Raises:
        ValueError: the depth is not 6n+2.
    """

    def __init__(
        self,
        depth: int,
        classes: int = 10,
        channels: int = 3,
        width: int = 16,
        block: MakeBlock = PlainBlock,
        last: Callable[[int], nn.Module] = lambda _: nn.Identity(),
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6 != 0:
            raise ValueError(f"depth is {depth}, and must be 6n+2")
        n = (depth - 2) // 6
        self.recompute = False
        self.conv = conv3x3(channels, width)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = self._stage(n, width, width, 1, block)
        self.stage2 = self._stage(n, width, 2 * width, 2, block)
        self.stage3 = self._stage(n, 2 * width, 4 * width, 2, block)
        self.last = last(4 * width)
        self.fc = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(n: int, channels: int, filters: int, stride: int, block: MakeBlock) -> nn.Sequential:
        """2n layers on maps of one size; the first of them changes the size."""
        first = block(channels, filters, stride)
        return nn.Sequential(first, *(block(filters, filters, 1) for _ in range(n - 1)))

    def stages(self) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
        """The blocks on maps of each size."""
        return self.stage1, self.stage2, self.stage3

    def blocks(self) -> Iterator[Any]:
        """All 3n, in order: modules that may have more to them (see `resrepro.family`)."""
        for stage in self.stages():
            yield from stage

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W) to logits (N, classes)."""
        x = F.relu(self.bn(self.conv(x)))
        for stage in self.stages():
            if self.recompute and torch.is_grad_enabled():
                for block in stage:
                    x = recomputed(block, x)
            else:
                x = stage(x)
        logits: Tensor = self.fc(self.last(x).mean((2, 3)))
        return logits

    def responses(self) -> list[nn.Module]:
        """The modules whose outputs are the 3x3 layers' responses (figure 7), in layer order.

        Raises:
            ResreproError: the blocks do not tell theirs.
        """
        for block in self.blocks():
            if not hasattr(block, "responses"):
                raise ResreproError(f"{type(block).__name__} has no responses() to tell them")
        inside = [response for block in self.blocks() for response in block.responses()]
        return [self.bn, *inside]


def build(model: schema.Model, depth: int, classes: int, channels: int) -> CifarNet:
    """The net that a configuration describes, its weights not yet drawn (see `initialise`).

    Raises:
        ConfigError: there is no such family: its extension was not given.
    """
    family = extension.block_of(model.name)
    options = {} if model.shortcut is None else {"shortcut": model.shortcut}
    more = {"last": family.last} if hasattr(family, "last") else {}
    # What a user's own block draws when it is made must not depend on what was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CifarNet(depth, classes, channels, model.width, partial(family, **options), **more)


def parameter_count(network: nn.Module) -> int:
    """Trainable numbers of a net, affine BN counted."""
    return sum(p.numel() for p in network.parameters())
