"""One iteration on the device: a batch forward, backward, and the update (paper, section 4.2)."""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resrepro import evaluation, networks
from resrepro.config import Config
from resrepro.data import Dataset
from resrepro.data.batches import Batches


class Sums(NamedTuple):
    """What is counted on the device from batch to batch.

    Attributes:
        loss: of the batches since the last row.
        wrong: answers since the last row.
        wrong_in_window: answers since the last warm-up window.
        not_finite_at: the iteration whose loss was the first not to be finite; 0: none was.
    """

    loss: float
    wrong: float
    wrong_in_window: float
    not_finite_at: int


class Step:
    """A net in training: its weights, their momentum, the batches, and the running sums.

    Args:
        config: the run's.
        data: what it is trained on.
        device: where everything lives and happens.
    """

    def __init__(self, config: Config, data: Dataset, device: torch.device) -> None:
        recipe = config.recipe
        self.precision, self.device = config.precision, device
        self.batches = Batches(data, config.data.mean, recipe, config.seed, device)
        network = networks.build(config.model, config.depth, data.classes, data.channels)
        networks.initialise(network, config.seed)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network.to(device)
        self.forward = cast(nn.Module, torch.compile(network)) if config.compile else network
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=device)

    def __call__(self, iteration: int, rate: float) -> None:
        """Trains on the batch of an iteration (0, 1, 2, …) at a learning rate."""
        x, labels = self.batches(iteration)
        with evaluation.arithmetic(self.precision, self.device)():
            logits = self.forward(x)
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._count(loss.detach(), logits.detach(), labels, iteration + 1)

    @torch.no_grad()
    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor, iteration: int) -> None:
        """Adds a batch to the sums, on the device: nothing waits for it."""
        wrong = (logits.argmax(1) != labels).sum()
        sums = self.sums
        sums[0] += loss
        sums[1] += wrong
        sums[2] += wrong
        sums[3] = torch.where(loss.isfinite() | (sums[3] > 0), sums[3], iteration)

    def read(self) -> Sums:
        """The sums; waits for the device."""
        loss, wrong, in_window, not_finite_at = self.sums.tolist()
        return Sums(loss, wrong, in_window, int(not_finite_at))

    def begin_row(self) -> None:
        """Counts loss and errors from here on."""
        self.sums[:2] = 0

    def begin_window(self) -> None:
        """Counts the warm-up's errors from here on."""
        self.sums[2] = 0

    def is_finite(self) -> bool:
        """Whether all weights and BN statistics are numbers; waits for the device."""
        parts = [tensor.isfinite().all() for tensor in self.network.state_dict().values()]
        return bool(torch.stack(parts).all().item())

    def errors(self, split: str) -> tuple[float, float]:
        """Mean loss and error (percent) of the net as it is on a split, without augmentation."""
        return evaluation.errors(self.forward, self.batches, split, self.precision)

    def state(self) -> dict[str, Any]:
        """What changes from step to step, for a checkpoint: the plain module's keys."""
        buffers = [self.optimizer.state[p].get("momentum_buffer") for p in self._parameters()]
        return {
            "network": dict(self.network.state_dict()),
            "momentum": buffers,
            "sums": self.sums,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.network.load_state_dict(state["network"])
        for parameter, buffer in zip(self._parameters(), state["momentum"], strict=True):
            if buffer is not None:
                on_device = torch.empty_like(parameter).copy_(buffer)
                self.optimizer.state[parameter]["momentum_buffer"] = on_device
        self.sums.copy_(state["sums"])

    def _parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())
