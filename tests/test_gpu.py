"""What holds on an NVIDIA GPU; skipped where there is none."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from resrepro.bench.gpu_check import TOLERANCE, losses_of_two
from resrepro.configuration.schema import Config
from resrepro.progress import Watcher
from resrepro.runs.run_directory import RunDirectory
from resrepro.training.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# A rate that drops, and a warm-up that ends: one graph sees several rates.
WORDS = ("recipe.iterations=60", "recipe.warm_up.depth=8", "evaluate_every=20", "depth=14")


def on_gpu(quick: Callable[..., Config], *words: str, **keys: Any) -> Config:
    return replace(quick(*WORDS, *words), device="cuda", **keys)


def trained(config: Config) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """The rows but for their seconds, and the weights."""
    train(config, Watcher())
    run = RunDirectory(config.directory)
    checkpoint, _ = run.load_checkpoint(config)
    assert checkpoint is not None
    return [replace(row, seconds=0.0) for row in run.metrics()], checkpoint["network"]


def assert_equal(one: Config, other: Config) -> None:
    rows, weights = trained(one)
    other_rows, other_weights = trained(other)
    assert rows == other_rows
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


@pytest.mark.parametrize("model", ["plain", "residual"])
def test_from_the_same_weights_a_loss_is_the_cpus(quick: Callable[..., Config], model: str) -> None:
    config = quick(f"model={model}", "depth=20", "deterministic=true")
    cuda, cpu = losses_of_two(replace(config, device="cuda"), config, 50)
    assert cuda == pytest.approx(cpu, rel=TOLERANCE)


def test_runs_repeat_to_the_bit(quick: Callable[..., Config]) -> None:
    words = ["deterministic=true"]
    assert_equal(on_gpu(quick, *words), on_gpu(quick, *words, "tag=again"))


def test_a_graph_changes_no_bit(quick: Callable[..., Config]) -> None:
    words = ["deterministic=true"]
    assert_equal(on_gpu(quick, *words), on_gpu(quick, *words, "tag=eager", "cuda_graph=false"))


@pytest.mark.parametrize("less", ["activation_checkpointing=true", "data.resident=host"])
def test_what_needs_less_memory_changes_no_bit(quick: Callable[..., Config], less: str) -> None:
    words = ["deterministic=true"]
    assert_equal(on_gpu(quick, *words), on_gpu(quick, *words, "tag=less", less))


def test_a_killed_run_resumes_to_the_bit(
    quick: Callable[..., Config], start: Callable[..., subprocess.Popen[str]]
) -> None:
    words = ["deterministic=true", "recipe.iterations=2000", "checkpoint_seconds=0.2"]
    whole, broken = on_gpu(quick, *words), on_gpu(quick, *words, "tag=broken")
    process = start(
        "train", "data=digits", "recipe=digits", *WORDS, *words, "tag=broken", "device=cuda",
        "threads=1",
    )  # fmt: skip
    while process.poll() is None and not (broken.directory / "checkpoint.pt").exists():
        pass
    process.kill()
    process.wait()
    assert_equal(whole, broken)


@pytest.mark.parametrize("words", [["precision=tf32"], ["precision=bfloat16"], ["compile=true"]])
def test_other_arithmetic_trains_and_is_recorded(
    quick: Callable[..., Config], words: list[str]
) -> None:
    config = on_gpu(quick, *words)
    rows, _ = trained(config)
    summary = json.loads((config.directory / "summary.json").read_text())
    key, _, value = words[0].partition("=")
    recorded = summary["compiled" if key == "compile" else key]
    assert recorded == (True if key == "compile" else value)
    assert rows[-1].train_error < 80
    assert 0 < summary["peak_memory_bytes"] < torch.cuda.get_device_properties(0).total_memory
