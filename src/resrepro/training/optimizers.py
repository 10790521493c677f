"""The optimizer of a run: one of torch.optim's, by its name and keywords."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resrepro.configuration.optimizers import check
from resrepro.configuration.schema import Config, paper_optimizer
from resrepro.training import devices

FUSED = ("SGD", "Adam", "AdamW")  # to one kernel on a GPU


def build(
    config: Config, parameters: Iterable[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of a net's parameters; the paper's is SGD (section 3.4).

    A captured graph reads the rate anew at each replay, from a tensor on the GPU. Where a fused
    optimizer is not captured it is the same tensor, so that both round it alike.

    Raises:
        ConfigError: torch.optim has no such optimizer, or it does not fit.
    """
    captured = devices.captures(config, device)
    if config.optimizer:
        check(config.optimizer, captured)
    described = config.optimizer or paper_optimizer(config.recipe)
    make: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, described.name)
    launched: dict[str, Any] = {}
    if described.name in FUSED:
        launched["fused"] = device.type == "cuda"
    if captured and "capturable" in inspect.signature(make).parameters:
        launched["capturable"] = True
        warnings.filterwarnings("ignore", ".*capturable=True")  # of the steps before the capture
    rate = config.recipe.learning_rate
    return make(
        parameters,
        lr=torch.tensor(rate, device=device) if any(launched.values()) else rate,
        **described.keywords,
        **launched,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step; nothing waits for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_state(optimizer: torch.optim.Optimizer, checkpoint: dict[str, Any]) -> None:
    """Gives an optimizer what it had gathered, perhaps on a device of another kind.

    Its keywords stay as they were built.

    Args:
        optimizer: as built.
        checkpoint: with the rate of the last iteration, and its `state_dict` as "optimizer"; or,
            of format 1, SGD's buffers as "momentum", one a parameter or None.
    """
    if "optimizer" in checkpoint:
        state = checkpoint["optimizer"]["state"]
    else:
        buffers = enumerate(checkpoint["momentum"])
        state = {i: {"momentum_buffer": buffer} for i, buffer in buffers if buffer is not None}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    set_rate(optimizer, checkpoint["learning_rate"])
    for parameter, gathered in optimizer.state.items():
        for key, value in gathered.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # and its strides
                gathered[key] = torch.empty_like(parameter).copy_(value)
