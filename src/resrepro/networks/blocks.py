"""The paper's two families of blocks: two 3x3 layers, without and with a shortcut around them."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from resrepro.extension import family


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


def make_shortcut(option: str, channels: int, filters: int, stride: int) -> nn.Module:
    """The shortcut around a block: the identity, unless the block changes the size.

    Args:
        option: A (no parameters) or B (a 1x1 projection where the size changes).
        channels: of the block's input.
        filters: of its output.
        stride: of the block; 2 halves the map.
    """
    if stride == 1 and channels == filters:
        return nn.Identity()
    if option == "A":
        return ShortcutA(channels, filters, stride)
    return nn.Sequential(
        nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
    )


@family("plain")
class PlainBlock(nn.Module):
    """Two 3x3 layers (paper, section 3.3).

    Args:
        channels: of the input.
        filters: of both layers.
        stride: of the first layer; 2 halves the map.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, filters, stride)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = conv3x3(filters, filters)
        self.bn2 = nn.BatchNorm2d(filters)

    def layers(self, x: Tensor) -> Tensor:
        """Both layers, but for the last ReLU: the F(x) of the paper's equation 1."""
        y = F.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.bn2(self.conv2(y)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, filters, ceil(H/stride), ceil(W/stride))."""
        return F.relu(self.layers(x))

    def make_identity(self) -> None:
        """Passes a map that is not negative on unchanged, in evaluation mode."""
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2)):
            nn.init.dirac_(conv.weight)
            bn.reset_parameters()
            assert bn.running_var is not None
            bn.running_var.fill_(1 - bn.eps)  # BN adds eps to it before it takes the root

    def responses(self) -> list[nn.Module]:
        """The modules whose outputs are the layers' responses (figure 7): after BN."""
        return [self.bn1, self.bn2]


@family("residual")
class ResidualBlock(PlainBlock):
    """Two 3x3 layers with a shortcut around them (paper, figure 2).

    Args:
        channels: of the input.
        filters: of both layers.
        stride: of the first layer; 2 halves the map.
        shortcut: A or B.
    """

    def __init__(self, channels: int, filters: int, stride: int, shortcut: str) -> None:
        super().__init__(channels, filters, stride)
        self.shortcut = make_shortcut(shortcut, channels, filters, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, filters, ceil(H/stride), ceil(W/stride))."""
        return F.relu(self.layers(x) + self.shortcut(x))

    def make_identity(self) -> None:
        """The branch adds zero: its weights stay as drawn, so that it can learn."""
        nn.init.zeros_(self.bn2.weight)
