from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from resrepro.data.ahead import Ahead, copy_stream

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


def test_the_next_is_there_before_it_is_asked_for() -> None:
    gathered: list[int] = []

    def gather(number: int) -> tuple[torch.Tensor]:
        gathered.append(number)
        return (torch.tensor(number),)

    ahead = Ahead(gather, CPU, copy_stream(CPU))
    found = []
    for number in (0, 1, 2, 7, 7, 3):
        found.append(int(ahead(number)[0]))
    assert found == [0, 1, 2, 7, 7, 3]
    assert gathered == [0, 1, 2, 3, 7, 8, 7, 8, 3, 4]


class Card:
    """A double of a GPU: what is asked of its streams, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.inside: list[Any] = ["computing"]  # the current stream is the last
        monkeypatch.setattr("torch.cuda.Stream", lambda device: "copying" if device == CUDA else "")
        monkeypatch.setattr("torch.cuda.stream", self.stream)
        monkeypatch.setattr("torch.cuda.Event", lambda: Event(self))
        monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream(self))

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        self.inside.append(stream)
        yield
        self.inside.pop()

    def write(self, line: str) -> None:
        self.log.append(f"{self.inside[-1]}: {line}")


class Event:
    def __init__(self, card: Card) -> None:
        self.card = card
        self.of = sum("copies" in line for line in card.log)  # the copies that it comes after

    def record(self, stream: str) -> None:
        assert stream == "copying"
        self.card.write(f"marks the end of copy {self.of}")


class Stream:
    def __init__(self, card: Card) -> None:
        self.card = card

    def wait_event(self, event: Event) -> None:
        self.card.write(f"waits for the end of copy {event.of}")


class Pageable:
    """Stands for a tensor in host memory, and for what becomes of it."""

    def __init__(self, card: Card, number: int, where: str = "pageable") -> None:
        self.card, self.number, self.where = card, number, where

    def pin_memory(self) -> "Pageable":
        return Pageable(self.card, self.number, "pinned")

    def to(self, device: torch.device, non_blocking: bool) -> "Pageable":
        assert (self.where, device, non_blocking) == ("pinned", CUDA, True)
        self.card.write(f"copies {self.number}")
        return Pageable(self.card, self.number, "device")

    def record_stream(self, stream: Stream) -> None:
        assert self.where == "device"
        self.card.write(f"keeps {self.number}")


def test_on_a_gpu_the_next_is_copied_on_a_stream_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The computing stream waits for the copy it uses alone, and its memory is kept until then."""
    card = Card(monkeypatch)
    ahead: Any = Ahead(lambda number: (Pageable(card, number),), CUDA, copy_stream(CUDA))  # type: ignore[arg-type, return-value]

    def ask(number: int) -> list[str]:
        card.log.clear()
        (tensor,) = ahead(number)
        assert (tensor.number, tensor.where) == (number, "device")
        return card.log

    assert ask(0) == [
        "copying: copies 0",
        "copying: marks the end of copy 1",
        "computing: waits for the end of copy 1",
        "computing: keeps 0",
        "copying: copies 1",
        "copying: marks the end of copy 2",
    ]
    assert ask(1)[:2] == ["computing: waits for the end of copy 2", "computing: keeps 1"]
    assert ask(2)[-2] == "copying: copies 3"
    assert ask(9)[:1] == ["copying: copies 9"]
