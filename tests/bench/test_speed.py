import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from resrepro import networks
from resrepro.bench import speed as bench
from resrepro.bench.conventional import Conventional, PilImages, default_arithmetic
from resrepro.bench.speed import Settings, Speed
from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError
from resrepro.training.step import StepGraph

SPEED = Speed(
    name="residual-20-s0",
    depth=20,
    image_size=32,
    batch_size=100,
    seconds=0.5,
    parts={"batch assembly": 0.1, "forward": 0.4, "backward": 0.4, "bookkeeping": 0.1},
    host_seconds=0.55,
    conventional_seconds=1.0,
    floating_point_operations=10**10,
    activation_bytes=10**8,
    matrix_rate=4e10,
    copy_bandwidth=1e10,
    peak_memory_bytes=1,
)


def test_ratios_are_of_the_whole_loop() -> None:
    assert SPEED.images_per_second == 200
    assert SPEED.times_conventional == 2
    assert SPEED.times_from_host == pytest.approx(1.1)
    assert SPEED.share_of_matrix_rate == 0.5
    assert SPEED.share_of_bandwidth == 0.1  # five passes over 1e8 bytes in half a second
    assert SPEED.share("batch assembly", "bookkeeping") == pytest.approx(0.2)
    assert replace(SPEED, conventional_seconds=None).times_conventional is None


def test_growth_is_drawn_where_there_are_points() -> None:
    deeper = [replace(SPEED, depth=depth) for depth in (20, 56, 110)]
    larger = [replace(SPEED, batch_size=size) for size in (32, 64, 128)]
    for speeds, lines in ((deeper, [1]), (larger, [1]), (deeper + larger, [1, 1])):
        figure = bench.growth(speeds)
        assert figure
        assert [len(axis.lines) for axis in figure.axes] == lines
    assert bench.growth(deeper[:2]) is None


@pytest.mark.parametrize(("depth", "multiply_adds"), [(20, 40_551_040), (56, 125_485_696)])
def test_work_is_that_of_the_multiply_adds(
    quick: Callable[..., Config], depth: int, multiply_adds: int
) -> None:
    """Two operations a multiply-add, three products a layer, but no gradient of the images."""
    config = quick("model=plain", f"depth={depth}", "recipe.batch_size=2")
    operations, activation_bytes = bench.work(config, bench.random_pixels(32))
    first = 3 * 16 * 9 * 32 * 32
    assert operations == 2 * 2 * (3 * multiply_adds - first)
    maps = 16 * (1 + (depth - 2) // 3) * 32 * 32  # of the first layer and of stage 1
    assert activation_bytes > 2 * 2 * 4 * maps


def test_the_command(resrepro_in: Callable[..., Any], tmp_path: Path) -> None:
    words = ["depth=8", "model=plain,residual", "device=cpu", "threads=1"]
    done = resrepro_in(tmp_path, "bench", *words, "image_size=8", "repeats=1", "seconds=0.05")
    assert (done.status, done.stderr) == (0, "")
    assert "plain-8-s0" in done.stdout
    assert "of matrix rate" in done.stdout
    report = json.loads((tmp_path / "outputs/bench/bench.json").read_text())
    for speed in report["speeds"]:
        assert speed["seconds"] > 0
        assert speed["conventional_seconds"] > 0
        assert 0.1 < speed["times_from_host"] < 10
        assert 0 < speed["share_of_matrix_rate"] < 1
        assert sum(speed["shares"].values()) == pytest.approx(1)
        assert set(speed["parts"]) == set(bench.PARTS) - {"graph"}
    assert (tmp_path / "outputs/bench/bench.png").stat().st_size > 10_000
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"bench"}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("image_size", "4", "image_size=4: must be from 8 to 1024 pixels each"),
        ("image_size", "[]", "image_size=: must be from 8 to 1024 pixels each"),
        ("image_size", "wide", "image_size=wide: must be from 8 to 1024 pixels each"),
        ("repeats", "0", "repeats=0: must be 1 or more"),
        ("seconds", "-1", "seconds=-1.0: must be more than 0, and finite"),
        ("seconds", "inf", "seconds=inf: must be more than 0, and finite"),
        ("conventional", "perhaps", "conventional=perhaps: must be true or false"),
    ],
)
def test_wrong_keys_are_refused(
    resrepro_here: Callable[..., Any], key: str, value: str, line: str
) -> None:
    done = resrepro_here("bench", f"{key}={value}")
    assert (done.status, done.error) == (2, f"resrepro bench: {line}")


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="repeats"):
        Settings([32], 0, 1.0, conventional=True)


def test_the_conventional_pipeline_learns(quick: Callable[..., Config]) -> None:
    """It would be no comparison if it did not train."""
    labels = np.arange(256) % 2
    images = np.repeat(labels * 200, 3 * 64).reshape(256, 3, 8, 8).astype(np.uint8)
    config = quick()
    network = networks.build(config.model, 8, 10, 3)
    networks.initialise(network, 0)
    pipeline = Conventional(network, images, labels, 32, torch.device("cpu"), workers=1)
    for _ in range(12):
        pipeline.iterate()
    before = pipeline.correct
    for _ in range(4):
        pipeline.iterate()
    assert pipeline.correct - before > 0.9 * 4 * 32


def test_the_conventional_transforms() -> None:
    images = np.arange(3 * 64, dtype=np.uint8).reshape(1, 3, 8, 8)
    crops = PilImages(images, np.zeros(1, np.int64))
    seen = {tuple(crops[0][0].flatten().tolist()) for _ in range(600)}
    assert len(seen) > 100  # of 162 crops and flips
    assert crops[0][0].shape == (3, 8, 8)


def test_a_capture_is_over_before_anything_is_timed() -> None:
    class Counting(bench.Clock):
        counts: ClassVar[list[int]] = []

        def time(self, _work: Callable[[], Any], count: int) -> float:
            self.counts.append(count)
            return 0.01

    settings = Settings([32], 1, 1.0, conventional=False)
    assert bench.iterations_for(lambda: None, settings, Counting(torch.device("cpu"))) == 100
    assert Counting.counts[0] > StepGraph.EAGER  # of which the next one captures


def test_the_conventional_pipeline_computes_as_pytorch_does_by_itself() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def flags() -> tuple[bool, ...]:
        return cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32

    before = flags()
    try:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, True, True
        with default_arithmetic():
            assert flags() == (True, False, False, False)
        assert flags()[:3] == (False, True, True)
    finally:
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul.allow_tf32 = before


@pytest.mark.alone
def test_it_is_faster_than_the_conventional_pipeline(quick: Callable[..., Config]) -> None:
    """A guard against a slip, with a wide margin: docs/performance.md has the ratios."""
    config = replace(quick("depth=20", "recipe.batch_size=128"), threads=None)
    speed = bench.measure(config, 16, Settings([16], 3, 0.5, conventional=True))
    assert speed.times_conventional is not None
    assert speed.times_conventional > 1.1
    assert speed.share_of_matrix_rate > 0.3
    assert speed.share("batch assembly", "bookkeeping") < 0.1
