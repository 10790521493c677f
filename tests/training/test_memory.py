import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from resrepro.configuration.schema import Config
from resrepro.training.memory import CONTEXT, OVERHEAD, LiveTensors, live, needed

CIFAR = ((3, 32, 32), 10)


def test_tensors_count_as_long_as_they_live() -> None:
    with LiveTensors() as tensors:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # no memory of its own
        c = a + 1
        assert tensors.bytes == 8000
        del a, c
        gc.collect()
        assert tensors.bytes == 4000
        del b
        assert (tensors.bytes, tensors.peak) == (0, 8000)


@pytest.mark.parametrize("words", [(), ("activation_checkpointing=true",), ("model=plain",)])
def test_every_block_needs_as_much_as_the_others(
    quick: Callable[..., Config], words: tuple[str, ...]
) -> None:
    config = quick(*words, "depth=26", "recipe.batch_size=64", "cuda_graph=false")
    whole = max(live(config, *CIFAR))
    assert needed(config, *CIFAR) == pytest.approx(CONTEXT + OVERHEAD * whole, rel=0.02)


def test_an_iteration_needs_what_autograd_keeps(quick: Callable[..., Config]) -> None:
    """Of residual-20 at 32x32 with 128 images 186 MiB by bench's count, and a few more in work."""
    config = quick("depth=20", "recipe.batch_size=128")
    in_training, _ = live(config, *CIFAR)
    assert 186 * 2**20 < in_training < 1.2 * 186 * 2**20
    less, _ = live(replace(config, activation_checkpointing=True), *CIFAR)
    assert less < 0.7 * in_training
    eager = replace(config, cuda_graph=False)
    twice = needed(config, *CIFAR) - needed(eager, *CIFAR)  # by default it is captured
    assert twice == pytest.approx(OVERHEAD * in_training, rel=0.02)
