"""One iteration on the device: a batch forward, backward, and the update (paper, section 4.2)."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resrepro import networks
from resrepro.configuration.schema import Config
from resrepro.data import Dataset
from resrepro.data.batches import Batches
from resrepro.errors import ResreproError
from resrepro.training import devices, evaluation, optimizers


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


class StepGraph:
    """One iteration's kernels, launched at once as a CUDA graph and not one by one.

    What changes from one replay to the next lies in tensors that keep their place: the batch, and
    the optimizer's learning rate.

    Args:
        train_on: forward, backward, update and counts, of images and labels.
    """

    EAGER = 3  # iterations before the capture: they allocate, and choose algorithms

    def __init__(self, train_on: Callable[[Tensor, Tensor], None]) -> None:
        self.train_on = train_on
        self.done = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, x: Tensor, labels: Tensor) -> None:
        """Trains on a batch."""
        if self.done < self.EAGER:
            self.eagerly(x, labels)
            self.done += 1
            return
        if self.replay is None:
            self.x, self.labels = x.clone(), labels.clone()
            self.replay = self.capture(lambda: self.train_on(self.x, self.labels))
        self.x.copy_(x)
        self.labels.copy_(labels)
        self.replay()

    def eagerly(self, x: Tensor, labels: Tensor) -> None:
        """One kernel after the other, on a stream of their own, as PyTorch asks for it."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self.train_on(x, labels)
        current.wait_stream(side)

    @staticmethod
    def capture(run: Callable[[], None]) -> Callable[[], None]:
        """Records what `run` launches; the result launches it all again."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


class Step:
    """A net in training: its weights, their optimizer, the batches, and the running sums.

    Args:
        config: the run's.
        data: what it is trained on.
        device: where everything lives and happens.
    """

    def __init__(self, config: Config, data: Dataset, device: torch.device) -> None:
        recipe = config.recipe
        self.precision, self.device = config.precision, device
        self.batches = Batches(
            data, config.data.mean, recipe, config.seed, device, config.data.resident
        )
        network = networks.build(config.model, config.depth, data.classes, data.channels)
        networks.initialise(network, config.seed)
        network.to(memory_format=torch.channels_last)
        self.network = network.to(device)
        network.recompute = config.activation_checkpointing
        self.logits = cast(nn.Module, torch.compile(network)) if config.compile else network
        self.optimizer = optimizers.build(config, network.parameters(), device)
        self.sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=device)
        # The iteration that the device has come to, counted there and here: they must agree.
        self.now = torch.zeros((), dtype=torch.float64, device=device)
        self.launched = 0
        self.graph = StepGraph(self.train_on) if devices.captures(config, device) else None

    def __call__(self, iteration: int, rate: float) -> None:
        """Trains on the batch of an iteration (0, 1, 2, …) at a learning rate."""
        if iteration != self.launched:  # a run that goes on
            self.now.fill_(iteration)
        self.launched = iteration + 1
        optimizers.set_rate(self.optimizer, rate)
        x, labels = self.assemble(iteration)
        if self.graph is None:
            self.train_on(x, labels)
        else:
            self.launch(x, labels)

    def train_on(self, x: Tensor, labels: Tensor) -> None:
        """One update of the weights, from images (N, C, H, W) and labels (N,)."""
        logits, loss = self.forward(x, labels)
        self.backward(loss)
        self.update()
        self.count(loss, logits, labels)

    def assemble(self, iteration: int) -> tuple[Tensor, Tensor]:
        """The batch of an iteration, cropped and flipped: images and labels."""
        return self.batches(iteration)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The net's answers (N, classes), and their loss."""
        with evaluation.arithmetic(self.precision, self.device)():
            logits: Tensor = self.logits(x)
        return logits.detach(), F.cross_entropy(logits.float(), labels)

    def backward(self, loss: Tensor) -> None:
        """The loss's gradients."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """A step of the optimizer."""
        self.optimizer.step()

    @torch.no_grad()
    def count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch to the sums, on the device: nothing waits for it."""
        wrong = (logits.argmax(1) != labels).sum()
        sums = self.sums
        self.now += 1
        sums[0] += loss
        sums[1] += wrong
        sums[2] += wrong
        sums[3] = torch.where(loss.isfinite() | (sums[3] > 0), sums[3], self.now)

    def launch(self, x: Tensor, labels: Tensor) -> None:
        """The same as `train_on`, at once."""
        assert self.graph is not None
        self.graph(x, labels)

    def read(self) -> Sums:
        """The sums; waits for the device.

        Raises:
            ResreproError: the device has not done all iterations that it was given. A CUDA graph
                that was captured on another device or stream is empty, and its replay does nothing.
        """
        loss, wrong, in_window, not_finite_at, now = torch.cat((self.sums, self.now[None])).tolist()
        if self.launched and now != self.launched:
            raise ResreproError(
                f"{self.device} has done {now:.0f} of {self.launched} iterations; its captured "
                "graph is empty: use cuda_graph=false, and tell resrepro's developers"
            )
        return Sums(loss, wrong, in_window, int(not_finite_at))

    def begin_row(self) -> None:
        """Counts loss and errors from here on."""
        self.sums[:2] = 0

    def begin_window(self) -> None:
        """Counts the warm-up's errors from here on."""
        self.sums[2] = 0

    def is_finite(self) -> bool:
        """Whether all weights are numbers; waits for the device."""
        parts = [parameter.isfinite().all() for parameter in self.network.parameters()]
        return bool(torch.stack(parts).all().item())

    def errors(self, split: str) -> tuple[float, float]:
        """Mean loss and error (percent) of the net as it is on a split, without augmentation."""
        return evaluation.errors(self.logits, self.batches, split, self.precision)

    def state(self) -> dict[str, Any]:
        """What changes from step to step, for a checkpoint: the plain module's keys."""
        return {
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.network.load_state_dict(state["network"])
        optimizers.load_state(self.optimizer, state)
        self.sums.copy_(state["sums"])
