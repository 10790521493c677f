"""Layer responses: how much each layer's output varies (paper, section 4.2 and figure 7)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from resrepro import extension, networks
from resrepro.data import load
from resrepro.data.batches import Batches
from resrepro.errors import ConfigError, ResreproError
from resrepro.runs.run_directory import RunDirectory
from resrepro.training import devices


def responses(run: RunDirectory) -> list[float]:
    """The deviation of each 3x3 layer's responses over the test set, in layer order.

    A response is a layer's output after BN and before the nonlinearity and the addition. The
    net is in evaluation mode, on the run's device, where it is here, and in its arithmetic.

    Raises:
        ResreproError: the data set or the checkpoint of the run's end cannot be had.
    """
    config = run.config()
    checkpoint = run.load_final_checkpoint()
    data = load(config.data)
    if data.digest != checkpoint["data_digest"]:
        raise ResreproError("the data set is not the one it was trained on")
    here = replace(config, device=_device(config.device))
    devices.set_up(here, checkpoint["threads"])
    device = devices.select(here.device)
    batches = Batches(
        data, config.data.mean, config.recipe, config.seed, device, config.data.resident
    )
    extension.require(config.extensions)
    network = networks.build(config.model, config.depth, data.classes, data.channels)
    network.load_state_dict(checkpoint["network"])
    return deviations(network.to(device).eval(), batches)


def _device(name: str) -> str:
    try:
        devices.select(name)
    except ConfigError:  # it was trained elsewhere
        return "auto"
    return name


@torch.no_grad()
def deviations(network: networks.CifarNet, batches: Batches) -> list[float]:
    """The responses' deviations over all images, maps and pixels of the test set."""
    layers = network.responses()
    sums = torch.zeros(len(layers), 3, dtype=torch.float64, device=batches.device)

    def record(index: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            y = output.double()
            sums[index] += torch.stack((y.sum(), y.square().sum(), y.new_tensor(y.numel())))

        return hook

    hooks = [layer.register_forward_hook(record(i)) for i, layer in enumerate(layers)]
    for images, _ in batches.unaugmented("test"):
        network(images)
    for hook in hooks:
        hook.remove()
    total, squares, count = sums.unbind(1)
    variance = squares / count - (total / count).square()
    return [float(value) for value in variance.clamp(min=0).sqrt()]
