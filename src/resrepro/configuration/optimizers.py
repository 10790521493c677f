"""Which of torch.optim's optimizers a configuration may name, and with which keywords."""

import inspect

import torch

from resrepro.configuration.schema import DEVICES_KEYWORDS, Optimizer
from resrepro.errors import ConfigError, one_line

UNFIT = {
    "LBFGS": "computes the loss several times an iteration",
    "Muon": "is for matrices alone",
    "Rprop": "takes its rate at the first iteration alone, and no schedule changes it",
    "SparseAdam": "is for sparse gradients",
}


def check(optimizer: Optimizer, cuda_graph: bool) -> None:
    """Refuses what cannot train a net, and what it cannot be made with.

    Args:
        optimizer: as configured.
        cuda_graph: whether its step is to be captured, with a rate that lies on the device.

    Raises:
        ConfigError: torch.optim has none of that name; it does not fit; it takes no such keyword,
            or not such a value.
    """
    name, there_are = optimizer.name, _fitting()
    if name not in there_are:
        why = f"{name} {UNFIT[name]}" if name in UNFIT else "torch.optim has no such optimizer"
        raise ConfigError(f"optimizer.name={name}: {why}; choose one of {', '.join(there_are)}")
    words = inspect.signature(there_are[name]).parameters
    takes = [word for word in words if word not in ("params", "lr", *DEVICES_KEYWORDS)]
    for keyword in optimizer.keywords:
        if keyword not in takes:
            raise ConfigError(f"optimizer.keywords.{keyword}: {name} takes {', '.join(takes)}")
    if cuda_graph and name != "SGD" and "capturable" not in words:
        raise ConfigError(f"cuda_graph=true: {name} cannot be captured; use cuda_graph=false")
    weights = torch.ones(2, 2, 3, 3, requires_grad=True)
    try:
        weights.grad = torch.ones_like(weights)
        there_are[name]([weights], **optimizer.keywords).step()
    except Exception as error:  # whatever PyTorch makes of the values
        raise ConfigError(f"optimizer.keywords: {name} refuses them: {one_line(error)}") from error


def _fitting() -> dict[str, type[torch.optim.Optimizer]]:
    base = torch.optim.Optimizer
    return {
        name: one
        for name, one in sorted(vars(torch.optim).items())
        if isinstance(one, type) and issubclass(one, base) and one is not base and name not in UNFIT
    }
