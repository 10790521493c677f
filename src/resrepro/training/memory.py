"""About how much memory a run needs on a device: counted without computing anything.

It is an estimate, in float32. What convolutions ask for to work in, and the holes between blocks
of memory, depend on the device; `OVERHEAD` and `CONTEXT` leave room for them.
"""

import weakref
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resrepro import networks
from resrepro.configuration.schema import Config
from resrepro.data.batches import EVALUATION_BATCH
from resrepro.training import devices

OVERHEAD = 1.5  # times what tensors take; on a CPU 1.2 to 1.5 was measured (docs/performance.md)
CONTEXT = 2**30  # bytes that CUDA and its libraries take in each process, about
SHALLOW = (14, 20)  # with one block a stage fewer maps are alive at once


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block, the bytes of the tensors that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)

    def _forget(self, key: int, count: int) -> None:
        self.known.discard(key)
        self.bytes -= count


def needed(config: Config, images: tuple[int, ...], classes: int) -> int:
    """Bytes that a run's process needs on a GPU, without its data set.

    Args:
        config: the run's.
        images: the shape of one (C, H, W).
        classes: how many there are.
    """
    # A block more is as much more: the deepest net takes no longer to count than a shallow one.
    less, more = (live(replace(config, depth=depth), images, classes) for depth in SHALLOW)
    blocks = (config.depth - SHALLOW[0]) / (SHALLOW[1] - SHALLOW[0])
    in_training, in_evaluation = (a + blocks * (b - a) for a, b in zip(less, more, strict=True))
    is_captured = devices.captures(config, torch.device("cuda"))
    graph = in_training if is_captured else 0  # a captured step has memory of its own
    return round(CONTEXT + OVERHEAD * (max(in_training, in_evaluation) + graph))


def live(config: Config, images: tuple[int, ...], classes: int) -> tuple[int, int]:
    """The most bytes of tensors alive in an iteration, and in an evaluation."""
    batch = config.recipe.batch_size
    with torch.device("meta"), LiveTensors() as tensors:
        network = networks.build(config.model, config.depth, classes, images[0])
        network.recompute = config.activation_checkpointing
        kept = 2 * tensors.bytes  # by the optimizer: SGD one number a weight, Adam two
        labels = torch.empty(batch, dtype=torch.int64)
        logits = network(torch.empty(batch, *images))
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        in_training = tensors.peak
        del logits, labels
        tensors.peak = tensors.bytes
        with torch.no_grad():
            network.eval()(torch.empty(EVALUATION_BATCH, *images))
    return in_training + kept, tensors.peak + kept
