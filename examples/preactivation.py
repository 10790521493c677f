# resrepro reproduce --extension examples/preactivation.py study=digits model=plain,residual,preactivation depth=20,56
"""The block of "Identity Mappings in Deep Residual Networks" (He et al. 2016, figure 1b).

BN and ReLU come before each convolution, so that the shortcut is an identity from end to end.
The net's last block is followed by the BN and ReLU that would have opened the next one.
"""

import torch.nn.functional as F
from torch import Tensor, nn

import resrepro
from resrepro.networks.blocks import conv3x3, make_shortcut


@resrepro.family("preactivation")
class Preactivation(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x))))))."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv3x3(channels, filters, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(filters), conv3x3(filters, filters)
        self.shortcut = make_shortcut("A", channels, filters, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, filters, H/stride, W/stride)."""
        y = self.conv1(F.relu(self.bn1(x)))
        return self.shortcut(x) + self.conv2(F.relu(self.bn2(y)))

    def make_identity(self) -> None:
        """The branch adds zero: for the constructed solution."""
        nn.init.zeros_(self.conv2.weight)

    @staticmethod
    def last(filters: int) -> nn.Module:
        """What follows the last block."""
        return nn.Sequential(nn.BatchNorm2d(filters), nn.ReLU())
