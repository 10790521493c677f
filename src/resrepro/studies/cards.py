"""How many runs a GPU takes at once."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from resrepro import interruption
from resrepro.configuration.schema import Config
from resrepro.data import Dataset, load

BUSY = 0.25  # of a card that one run uses, as long as `resrepro bench` has not measured it
MOST = 8  # beyond what gpu_check tries, nobody knows


def runs_side_by_side() -> bool:
    """Whether kernels of several processes run at once on a GPU: where NVIDIA's MPS daemon runs."""
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")  # noqa: S108, as MPS does
    return (Path(pipes) / "control").exists()


@dataclass(frozen=True)
class Card:
    """A GPU: its name, and the bytes of its memory that nobody uses."""

    name: str
    free: int


def shared_out(run: Config, count: int, devices: list[str]) -> list[str]:
    """A device for each of the runs at once, in turn over the cards.

    Args:
        run: the most demanding of a study's.
        count: how many runs the study has.
        devices: the cards: cuda:0, cuda:1, …

    Raises:
        ConfigError: there is no such card.
        ResreproError: the data cannot be had.
    """
    import joblib

    from resrepro.training.devices import select

    for device in devices:
        select(device)
    data = load(run.data)
    cores = max(1, joblib.cpu_count() // len(devices))  # each run keeps one busy with launches
    takes = [
        max(1, min(cores, by_memory(run, data, card), by_use(run, data, card)))
        for card in look_at(devices)
    ]
    turns = [
        device
        for turn in range(max(takes))
        for device, most in zip(devices, takes, strict=True)
        if turn < most
    ]
    return turns[:count]


def look_at(devices: list[str]) -> list[Card]:
    """The cards, seen by a process of its own: who has asked one keeps some of its memory."""
    context = multiprocessing.get_context("spawn")
    with interruption.deferred(), ProcessPoolExecutor(1, mp_context=context) as pool:
        return list(pool.map(_card, devices))


def _card(device: str) -> Card:
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return Card(torch.cuda.get_device_name(device), free)


def by_memory(run: Config, data: Dataset, card: Card) -> int:
    """How many runs fit into a card's free memory, by an estimate."""
    from resrepro.data.batches import fits
    from resrepro.training.memory import needed

    on_card = run.data.resident == "device" or (
        run.data.resident == "auto" and fits(data.image_bytes, card.free)
    )
    need = needed(run, data.train_images.shape[1:], data.classes)
    return card.free // (need + on_card * data.image_bytes)


def by_use(run: Config, data: Dataset, card: Card) -> int:
    """How many runs keep a card busy, by what `resrepro bench` has measured on one like it.

    Of what was measured with batches and images of this size the busiest counts. But where
    processes take turns on the card, one whose iterations are captured leaves no gap to another:
    on an H200 eight did as many iterations a second as one.
    """
    import torch

    from resrepro.training.devices import captures

    if captures(run, torch.device("cuda")) and not runs_side_by_side():
        return 1
    shares = [BUSY]
    try:
        report = json.loads((Path(run.outputs).expanduser() / "bench/bench.json").read_text())
        if report["device"] == card.name:
            size = (run.recipe.batch_size, data.train_images.shape[-1])
            shares = [
                max(speed["share_of_matrix_rate"], speed["share_of_bandwidth"])
                for speed in report["speeds"]
                if (speed["batch_size"], speed["image_size"]) == size
            ] or shares
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not ours
    return min(MOST, max(1, round(1 / max(shares))))
