"""From host memory to a device, one step ahead of who asks."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Gather = Callable[[int], tuple[Tensor, ...]]


class Copy(NamedTuple):
    """What was gathered of a number, on the device once `done` has come; None: it is there."""

    number: int
    tensors: tuple[Tensor, ...]
    done: torch.cuda.Event | None


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies alone, where there are streams."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Ahead:
    """What is gathered of the numbers 0, 1, 2, … in host memory, on a device.

    Whoever has been given one is expected to ask for the next, whose copy is begun at once: on a
    GPU on a stream of its own, while the device computes. A guess that was wrong costs the copy.

    Args:
        gather: tensors in host memory, a pure function of a number.
        device: where they are wanted.
        stream: that a GPU copies on; None on a CPU.
    """

    def __init__(
        self, gather: Gather, device: torch.device, stream: torch.cuda.Stream | None
    ) -> None:
        self.gather, self.device, self.stream = gather, device, stream
        self.next: Copy | None = None

    def __call__(self, number: int) -> tuple[Tensor, ...]:
        """What is gathered of a number, on the device; whoever uses it need wait for nothing."""
        guess, self.next = self.next, None
        copy = guess if guess and guess.number == number else self._begin(number)
        if copy.done is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copy.done)
            for tensor in copy.tensors:  # the copying stream's memory, which it must not reuse yet
                tensor.record_stream(current)
        self.next = self._begin(number + 1)
        return copy.tensors

    def _begin(self, number: int) -> Copy:
        tensors = self.gather(number)
        if self.stream is None:
            return Copy(number, tuple(tensor.to(self.device) for tensor in tensors), None)
        # PyTorch gives pinned memory out again only when the copies from it are done.
        pinned = [tensor.pin_memory() for tensor in tensors]
        with torch.cuda.stream(self.stream):
            moved = tuple(tensor.to(self.device, non_blocking=True) for tensor in pinned)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self.stream)
        return Copy(number, moved, done)
