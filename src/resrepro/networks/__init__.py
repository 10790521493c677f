"""The nets for CIFAR (paper, section 4.2): a layout, and families of blocks to fill it with."""

from resrepro.networks.cifar import CifarNet, build, parameter_count
from resrepro.networks.weights import construct, initialise

__all__ = ["CifarNet", "build", "construct", "initialise", "parameter_count"]
