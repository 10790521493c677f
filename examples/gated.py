# resrepro reproduce --extension examples/gated.py study=digits model=plain,residual,gated depth=20,56
"""A residual block whose branch is let in by a gate that is learned from 0: y = x + g F(x)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resrepro
from resrepro.networks.blocks import conv3x3, make_shortcut


@resrepro.family("gated")
class Gated(nn.Module):
    """Every block begins as its shortcut alone."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, filters, stride), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = conv3x3(filters, filters), nn.BatchNorm2d(filters)
        self.shortcut = make_shortcut("A", channels, filters, stride)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, filters, H/stride, W/stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + self.gate * y)
