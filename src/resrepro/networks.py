"""The plain and residual nets for CIFAR (paper, section 4.2), written as the paper counts layers.

A net of depth 6n+2 is a first 3x3 convolution, then 2n layers each on maps of 32x32, 16x16 and
8x8 pixels with 16, 32 and 64 filters, then global average pooling and a fully connected layer.
A residual net is its plain twin with a shortcut around each pair of 3x3 layers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resrepro import randomness
from resrepro.configuration import schema


def conv3x3(channels: int, filters: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the map's size (divided by the stride); BN makes a bias idle."""
    return nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False)


class ShortcutA(nn.Module):
    """Option A: every second pixel, and zeros for the new channels. No parameters."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.new_channels = filters - channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, filters, ceil(H/stride), ceil(W/stride))."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


def shortcut(option: str, channels: int, filters: int, stride: int) -> nn.Module:
    """The shortcut around a block: the identity, unless the block changes the size."""
    if stride == 1 and channels == filters:
        return nn.Identity()
    if option == "A":
        return ShortcutA(channels, filters, stride)
    return nn.Sequential(
        nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
    )


class Block(nn.Module):
    """Two 3x3 layers; with a shortcut option, a residual block (paper, figure 2).

    Args:
        channels: of the input.
        filters: of both layers.
        stride: of the first layer; 2 halves the map.
        option: A or B for a residual block, None for two plain layers.

    Attributes:
        recompute: whether a training step keeps only the block's input and computes the maps
            inside it once more for the gradients: less memory, the same numbers, slower.
    """

    def __init__(self, channels: int, filters: int, stride: int, option: str | None) -> None:
        super().__init__()
        self.recompute = False
        self.conv1 = conv3x3(channels, filters, stride)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = conv3x3(filters, filters)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = shortcut(option, channels, filters, stride) if option else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, filters, ceil(H/stride), ceil(W/stride))."""
        if self.recompute and torch.is_grad_enabled():
            # Once more in the backward pass, and then not counted in BN's statistics again.
            contexts = (nullcontext(), self._statistics_kept())
            return checkpoint(self._layers, x, use_reentrant=False, context_fn=lambda: contexts)
        return self._layers(x)

    def _layers(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y)

    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, kept in zip(norms, before, strict=True):
                norm.momentum, norm.num_batches_tracked = kept


class CifarNet(nn.Module):
    """A plain or residual net of depth 6n+2 (paper, section 4.2).

    Args:
        depth: weighted layers, 6n+2.
        classes: outputs of the last layer.
        channels: of the images.
        width: filters of the first layer.
        option: the shortcuts' (A or B); None for a plain net.

    Raises:
        ValueError: the depth is not 6n+2.
    """

    def __init__(
        self,
        depth: int,
        classes: int = 10,
        channels: int = 3,
        width: int = 16,
        option: str | None = None,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6 != 0:
            raise ValueError(f"depth is {depth}, and must be 6n+2")
        n = (depth - 2) // 6
        self.conv = conv3x3(channels, width)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = self._stage(n, width, width, 1, option)
        self.stage2 = self._stage(n, width, 2 * width, 2, option)
        self.stage3 = self._stage(n, 2 * width, 4 * width, 2, option)
        self.fc = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(n: int, channels: int, filters: int, stride: int, option: str | None) -> nn.Module:
        """2n layers on maps of one size; the first of them changes the size."""
        first = Block(channels, filters, stride, option)
        return nn.Sequential(first, *(Block(filters, filters, 1, option) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W) to logits (N, classes)."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def build(model: schema.Model, depth: int, classes: int, channels: int) -> CifarNet:
    """The net that a configuration describes, its weights not yet drawn (see `initialise`)."""
    return CifarNet(depth, classes, channels, model.width, model.shortcut)


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """He initialisation: zero-mean normal weights of variance 2 / fan-in, biases zero, BN 1 and 0.

    The weights are a pure function of the seed, the same on every machine and device, and nets of
    one depth, plain or residual, begin with the same: option B's projections are drawn last.
    Source: He et al. 2015, "Delving Deep into Rectifiers", equation 10, which the paper cites.
    """
    named = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    named.sort(key=lambda item: ".shortcut." in item[0])
    for index, (_, layer) in enumerate(named):
        fan_in = layer.weight[0].numel()
        normal = randomness.generator(seed, "weights", index).standard_normal(layer.weight.shape)
        layer.weight.copy_(torch.from_numpy(normal * math.sqrt(2 / fan_in)))
        if layer.bias is not None:
            layer.bias.zero_()


@torch.no_grad()
def construct(deep: CifarNet, shallow: CifarNet) -> None:
    """Makes a deep net compute what a shallow one computes, by identity layers (paper, section 1).

    Each stage of the deep net begins with the shallow net's blocks; those after them pass their
    input on unchanged in evaluation mode. Their input is not negative, so that ReLU changes
    nothing. In a plain block both convolutions pass every map through, and BN divides by one. In
    a residual block the branch adds zero: its weights stay as they were drawn, so that it can
    learn, and the last BN scales them by zero.

    Raises:
        ValueError: the nets differ in more than depth, or the deep one is not deeper.
    """
    wanted, there_is = deep.state_dict(), shallow.state_dict()
    fits = all(name in wanted and wanted[name].shape == t.shape for name, t in there_is.items())
    if not fits or len(wanted) <= len(there_is):
        raise ValueError("the deep net must be the shallow one with more blocks in each stage")
    deep.load_state_dict(wanted | there_is)
    for name, block in deep.named_modules():
        if isinstance(block, Block) and f"{name}.conv1.weight" not in there_is:
            _make_identity(block)


def _make_identity(block: Block) -> None:
    if block.shortcut is not None:
        nn.init.zeros_(block.bn2.weight)
        return
    for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
        nn.init.dirac_(conv.weight)
        bn.reset_parameters()
        assert bn.running_var is not None
        bn.running_var.fill_(1 - bn.eps)  # BN adds eps to it before it takes the root


def parameter_count(network: nn.Module) -> int:
    """Trainable numbers of a net, affine BN counted."""
    return sum(p.numel() for p in network.parameters())
