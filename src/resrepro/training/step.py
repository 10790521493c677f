"""One iteration on the device: a batch forward, backward, and the update (paper, section 4.2)."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resrepro import networks
from resrepro.configuration.schema import Config
from resrepro.data import Dataset
from resrepro.data.batches import Batches
from resrepro.errors import ResreproError
from resrepro.training import evaluation


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


Compute = Callable[[Tensor, Tensor, float], Iterator[str]]


class StepGraph:
    """One iteration's kernels, launched at once as a CUDA graph and not one by one.

    A learning rate is a constant of the graph: another one captures another graph.

    Args:
        compute: forward, backward, update and counts, of images and labels at a rate.
    """

    EAGER = 3  # iterations before the first capture: they allocate, and choose algorithms

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.done = 0
        self.rate: float | None = None
        self.replay: Callable[[], None] | None = None

    def __call__(self, x: Tensor, labels: Tensor, rate: float) -> None:
        """Trains on a batch."""
        if self.done < self.EAGER:
            self.eagerly(x, labels, rate)
            self.done += 1
            return
        if self.replay is None:
            self.x, self.labels = x.clone(), labels.clone()
        if rate != self.rate:
            self.replay = None  # frees its memory for the next one's
            self.replay = self.capture(lambda: self.run(self.x, self.labels, rate))
            self.rate = rate
        self.x.copy_(x)
        self.labels.copy_(labels)
        assert self.replay is not None
        self.replay()

    def run(self, x: Tensor, labels: Tensor, rate: float) -> None:
        """Launches one kernel after the other."""
        for _ in self.compute(x, labels, rate):
            pass

    def eagerly(self, x: Tensor, labels: Tensor, rate: float) -> None:
        """The same on a stream of its own, as capturing wants it of what comes before."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self.run(x, labels, rate)
        current.wait_stream(side)

    @staticmethod
    def capture(run: Callable[[], None]) -> Callable[[], None]:
        """Records what `run` launches; the result launches it all again."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


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
        network.to(memory_format=torch.channels_last)
        self.network = network.to(device)
        network.recompute = config.activation_checkpointing
        self.forward = cast(nn.Module, torch.compile(network)) if config.compile else network
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=device.type == "cuda",
        )
        self.sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=device)
        # The iteration that the device has come to, counted there and here: they must agree.
        self.now = torch.zeros((), dtype=torch.float64, device=device)
        self.launched = 0
        self.graph = StepGraph(self._compute) if config.cuda_graph else None

    def parts(self, iteration: int, rate: float) -> Iterator[str]:
        """Trains on the batch of an iteration (0, 1, 2, …) at a learning rate.

        Stops after each part of it with the part's name.
        """
        x, labels = self.batches(iteration)
        if iteration != self.launched:  # a run that goes on
            self.now.fill_(iteration)
        self.launched = iteration + 1
        yield "batch assembly"
        if self.graph is None:
            yield from self._compute(x, labels, rate)
        else:
            self.graph(x, labels, rate)
            yield "graph"

    def _compute(self, x: Tensor, labels: Tensor, rate: float) -> Iterator[str]:
        with evaluation.arithmetic(self.precision, self.device)():
            logits = self.forward(x)
        loss = F.cross_entropy(logits.float(), labels)
        yield "forward"
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        yield "backward"
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        yield "update"
        self._count(loss.detach(), logits.detach(), labels)
        yield "bookkeeping"

    @torch.no_grad()
    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch to the sums, on the device: nothing waits for it."""
        wrong = (logits.argmax(1) != labels).sum()
        sums = self.sums
        self.now += 1
        sums[0] += loss
        sums[1] += wrong
        sums[2] += wrong
        sums[3] = torch.where(loss.isfinite() | (sums[3] > 0), sums[3], self.now)

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
