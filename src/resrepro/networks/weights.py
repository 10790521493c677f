"""What a net begins with: He initialisation, or a trained shallower net's weights."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from resrepro import randomness
from resrepro.errors import ResreproError
from resrepro.networks.cifar import CifarNet


@torch.no_grad()
def initialise(network: CifarNet, seed: int) -> None:
    """He initialisation: zero-mean normal weights of variance 2 / fan-in, biases zero, BN 1 and 0.

    The weights are a pure function of the seed, the same on every machine and device, and nets of
    one depth, plain or residual, begin with the same: option B's projections are drawn last. A
    block with an `initialise(generator)` of its own sets its weights itself, after that.
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
    for index, block in enumerate(network.blocks(), len(named)):
        if hasattr(block, "initialise"):
            raw = randomness.integers(seed, "weights", index, 1)
            block.initialise(torch.Generator().manual_seed(int(raw[0] >> 1)))


@torch.no_grad()
def construct(deep: CifarNet, shallow: CifarNet) -> None:
    """Makes a deep net compute what a shallow one computes, by identity layers (paper, section 1).

    Each stage of the deep net begins with the shallow net's blocks; those after them pass their
    input on unchanged in evaluation mode. Their input is not negative, so that ReLU changes
    nothing.

    Raises:
        ValueError: the nets differ in more than depth, or the deep one is not deeper.
        ResreproError: the blocks do not say how to make themselves an identity.
    """
    wanted, there_is = deep.state_dict(), shallow.state_dict()
    fits = all(name in wanted and wanted[name].shape == t.shape for name, t in there_is.items())
    if not fits or len(wanted) <= len(there_is):
        raise ValueError("the deep net must be the shallow one with more blocks in each stage")
    deep.load_state_dict(wanted | there_is)
    for stage, shallow_stage in zip(deep.stages(), shallow.stages(), strict=True):
        for block in cast(Iterable[Any], stage[len(shallow_stage) :]):
            if not hasattr(block, "make_identity"):
                raise ResreproError(
                    f"{type(block).__name__} cannot be constructed: it has no make_identity()"
                )
            block.make_identity()
