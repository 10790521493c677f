"""`resrepro bench`: the speed of training, beside what the machine can do at all.

All that is compared is timed in turns within one run, so that whatever else the machine does
falls on all alike; ratios are worth more than seconds.
"""

import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from resrepro import networks
from resrepro.bench.conventional import Conventional
from resrepro.configuration.schema import WIDEST_IMAGE, Config
from resrepro.data import Dataset
from resrepro.data.batches import Batches
from resrepro.errors import ConfigError
from resrepro.files import write_atomically
from resrepro.progress import Watcher, bar
from resrepro.runs.provenance import provenance
from resrepro.runs.run_directory import RunDirectory
from resrepro.training import devices
from resrepro.training.loop import Training
from resrepro.training.step import Step, StepGraph

IMAGES = 10_000  # more than a repeat sees; an epoch's length plays no part
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns: enough to reach the machine's rate
COPIED = {"cpu": 2**27, "cuda": 2**30}  # bytes: more than a cache holds
WARM_UP = StepGraph.EAGER + 2  # iterations before any is timed: a capture is among them
# Each activation is written and read on the way forward and read on the way back, where its
# gradient is written and read.
PASSES = 5
# The methods of a step that are timed, and what they are called; of a captured one the inner ones
# are never called.
STEPS = {
    "assemble": "batch assembly",
    "forward": "forward",
    "backward": "backward",
    "update": "update",
    "launch": "graph",
}
PARTS = (*STEPS.values(), "bookkeeping")


@dataclass(frozen=True)
class Speed:
    """What was measured of one configuration; medians over the repeats.

    Attributes:
        name: of the run.
        depth: of its net.
        image_size: pixels a side.
        batch_size: images an iteration.
        seconds: of an iteration of the whole training loop.
        parts: seconds of each part of an iteration, measured by themselves: waiting for the
            device after each part, where the loop waits for nothing.
        host_seconds: of an iteration whose batch comes from host memory (data.resident=host).
        conventional_seconds: of an iteration of the conventional pipeline.
        floating_point_operations: of an iteration, two a multiply-add.
        activation_bytes: that an iteration keeps for the backward pass.
        matrix_rate: floating-point operations a second in large matrix products.
        copy_bandwidth: bytes read and written a second in a large copy.
        peak_memory_bytes: of training, on the GPU; on a CPU of the process, for its first
            measurement.
    """

    name: str
    depth: int
    image_size: int
    batch_size: int
    seconds: float
    parts: dict[str, float]
    host_seconds: float
    conventional_seconds: float | None
    floating_point_operations: int
    activation_bytes: int
    matrix_rate: float
    copy_bandwidth: float
    peak_memory_bytes: int | None

    @property
    def images_per_second(self) -> float:
        """Of the whole training loop."""
        return self.batch_size / self.seconds

    @property
    def times_conventional(self) -> float | None:
        """How many times as fast as the conventional pipeline."""
        conventional = self.conventional_seconds
        return None if conventional is None else conventional / self.seconds

    @property
    def times_from_host(self) -> float:
        """How many times as long an iteration takes whose batch comes from host memory."""
        return self.host_seconds / self.seconds

    @property
    def share_of_matrix_rate(self) -> float:
        """Of the machine's rate in matrix products, over the whole loop."""
        return self.floating_point_operations / self.seconds / self.matrix_rate

    @property
    def share_of_bandwidth(self) -> float:
        """Of the machine's bandwidth in copies, over the whole loop."""
        return PASSES * self.activation_bytes / self.seconds / self.copy_bandwidth

    def share(self, *parts: str) -> float:
        """What some parts take of an iteration's time."""
        return sum(self.parts.get(part, 0.0) for part in parts) / sum(self.parts.values())


@dataclass(frozen=True)
class Settings:
    """How it is measured: bench.yaml's own keys."""

    image_sizes: list[int]
    repeats: int
    seconds: float
    conventional: bool

    def __post_init__(self) -> None:
        sizes = self.image_sizes
        if not sizes or not all(type(size) is int and 8 <= size <= WIDEST_IMAGE for size in sizes):
            said = ",".join(map(str, sizes))
            raise ConfigError(f"image_size={said}: must be from 8 to {WIDEST_IMAGE} pixels each")
        if self.repeats < 1:
            raise ConfigError(f"repeats={self.repeats}: must be 1 or more")
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"seconds={self.seconds}: must be more than 0, and finite")


def bench(runs: list[Config], settings: Settings, folder: Path) -> list[Speed]:
    """Measures some configurations at some image sizes; writes bench.json and its pictures."""
    measured = []
    total = len(runs) * len(settings.image_sizes) * settings.repeats
    with bar(total, "bench", "repeat") as progress:
        for run in runs:
            for size in settings.image_sizes:
                progress.set_postfix_str(f"{run.name}, {size}x{size}")
                measured.append(measure(run, size, settings, progress.update))
    report = {
        "settings": asdict(settings),
        "device": devices.describe(devices.select(runs[0].device)),
        "threads": torch.get_num_threads(),
        "precision": runs[0].precision,
        "compile": runs[0].compile,
        **provenance(),
        "speeds": [in_full(speed) for speed in measured],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "bench.json", (json.dumps(report, indent=2) + "\n").encode())
    picture(measured).savefig(folder / "bench.png", dpi=200)
    (folder / "growth.png").unlink(missing_ok=True)  # an earlier bench's
    if figure := growth(measured):
        figure.savefig(folder / "growth.png", dpi=200)
    return measured


def in_full(speed: Speed) -> dict[str, Any]:
    """What was measured, and the ratios that follow from it."""
    return asdict(speed) | {
        "images_per_second": speed.images_per_second,
        "times_from_host": speed.times_from_host,
        "times_conventional": speed.times_conventional,
        "share_of_matrix_rate": speed.share_of_matrix_rate,
        "share_of_bandwidth": speed.share_of_bandwidth,
        "shares": {part: speed.share(part) for part in speed.parts},
    }


def measure(
    config: Config, size: int, settings: Settings, after_repeat: Callable[[], Any] = lambda: None
) -> Speed:
    """Times one configuration, the conventional pipeline and the machine's limits in turns."""
    data = random_pixels(size)
    with prepared(config, data) as training:
        device = training.step.device
        clock = Clock(device)
        counts = {"loop": iterations_for(training.iterate, settings, clock)}
        peak_memory = training.record.peak_memory.bytes()  # before all that follows takes its own
        loops = {"loop": training.iterate, "host": from_host(training, config, data)}
        if settings.conventional:
            loops["conventional"] = conventional(config, data, device)
        multiply, operations = matrix_product(device, config.precision)
        copy, copied = large_copy(device)
        for name, loop in loops.items():
            if name not in counts:
                counts[name] = iterations_for(loop, settings, clock)
        times: dict[str, list[float]] = defaultdict(list)
        parts: dict[str, list[float]] = defaultdict(list)
        for _ in range(settings.repeats):
            for name, loop in loops.items():
                times[name].append(clock.time(loop, counts[name]))
            for name, limit in (("multiply", multiply), ("copy", copy)):
                limit()
                times[name].append(clock.time(limit, 3))
            for part, seconds in parts_of(training, clock, max(1, counts["loop"] // 2)).items():
                parts[part].append(seconds)
            after_repeat()
        median = {name: statistics.median(values) for name, values in times.items()}
        operations_needed, activation_bytes = work(config, data)
        return Speed(
            name=config.name,
            depth=config.depth,
            image_size=size,
            batch_size=config.recipe.batch_size,
            seconds=median["loop"],
            parts={name: statistics.median(values) for name, values in parts.items()},
            host_seconds=median["host"],
            conventional_seconds=median.get("conventional"),
            floating_point_operations=operations_needed,
            activation_bytes=activation_bytes,
            matrix_rate=operations / median["multiply"],
            copy_bandwidth=copied / median["copy"],
            peak_memory_bytes=peak_memory,
        )


@contextmanager
def prepared(config: Config, data: Dataset) -> Iterator[Training]:
    """A run that is about to train, in a folder that is not kept, without evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        here = replace(
            config,
            outputs=folder,
            evaluate_every=10**9,
            recipe=replace(config.recipe, iterations=10**9),
        )
        run = RunDirectory(here.directory)
        run.open(here)
        yield Training(here, run, Watcher(), data)


def from_host(training: Training, config: Config, data: Dataset) -> Callable[[], None]:
    """An iteration as ever, but for a data set that lies in host memory."""
    step, own = training.step, training.step.batches
    batches = Batches(data, config.data.mean, config.recipe, config.seed, step.device, "host")

    def iterate() -> None:
        step.batches = batches
        training.iterate()
        step.batches = own

    return iterate


def conventional(config: Config, data: Dataset, device: torch.device) -> Callable[[], None]:
    """An iteration of the conventional pipeline, with a net of its own."""
    network = networks.build(config.model, config.depth, data.classes, data.channels)
    networks.initialise(network, config.seed)
    images, labels = data.train_images, data.train_labels
    return Conventional(network, images, labels, config.recipe.batch_size, device).iterate


def random_pixels(size: int) -> Dataset:
    """Colour images of noise: what is in them makes no difference to the time."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (IMAGES, 3, size, size), np.uint8)
    labels = generator.integers(0, 10, IMAGES)
    return Dataset(images, labels, images[:500], labels[:500], classes=10, digest="random pixels")


class Clock:
    """Times work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        """Seconds, after all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def time(self, work: Callable[[], Any], count: int) -> float:
        """Seconds that each of `count` calls takes."""
        began = self.now()
        for _ in range(count):
            work()
        return (self.now() - began) / count


def iterations_for(loop: Callable[[], None], settings: Settings, clock: Clock) -> int:
    """How many iterations a repeat takes, after some that are not timed."""
    clock.time(loop, WARM_UP)
    return max(1, round(settings.seconds / clock.time(loop, 2)))


def parts_of(training: Training, clock: Clock, count: int) -> dict[str, float]:
    """Seconds of each part of an iteration, mean of `count`; bookkeeping is all that is left."""
    seconds: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for name, part in STEPS.items():
            stack.enter_context(timed(training.step, name, clock, seconds, part))
        total = count * clock.time(training.iterate, count)
    seconds["bookkeeping"] = total - sum(seconds.values())
    return {part: seconds[part] / count for part in PARTS if part in seconds}


@contextmanager
def timed(
    step: Step, name: str, clock: Clock, seconds: dict[str, float], part: str
) -> Iterator[None]:
    """Within the block each call of a step's method adds what it takes to its part's seconds."""
    method = getattr(step, name)

    def call(*args: Any) -> Any:
        began = clock.now()
        result = method(*args)
        seconds[part] += clock.now() - began
        return result

    setattr(step, name, call)
    try:
        yield
    finally:
        delattr(step, name)


def matrix_product(device: torch.device, precision: str) -> tuple[Callable[[], Any], int]:
    """A product of large square matrices, and its floating-point operations."""
    n = MATRIX[device.type]
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(n, n, device=device).to(kind)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out), 2 * n**3


def large_copy(device: torch.device) -> tuple[Callable[[], Any], int]:
    """A copy from memory to memory, and the bytes that it reads and writes."""
    source = torch.randint(256, (COPIED[device.type],), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def work(config: Config, data: Dataset) -> tuple[int, int]:
    """An iteration's floating-point operations, and the bytes it keeps for the backward pass.

    Counted on the meta device, where nothing is computed: convolutions and the matrix product
    forward and backward, two operations a multiply-add, and every tensor that autograd keeps,
    but for the weights.
    """
    with torch.device("meta"):
        network = networks.build(config.model, config.depth, data.classes, data.channels)
        x = torch.empty(config.recipe.batch_size, *data.train_images.shape[1:])
        labels = torch.empty(config.recipe.batch_size, dtype=torch.int64)
    weights = {id(tensor) for tensor in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(network(x), labels).backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops(), sum(kept.values())


def table(speeds: list[Speed]) -> str:
    """What was measured, as text."""
    parts = [part for part in PARTS if any(part in speed.parts for speed in speeds)]
    ours = ("run", "pixels", "images/s", "from host", "conventional", "times")
    headers = [*ours, "of matrix rate", "of bandwidth", *parts]
    rows = []
    for speed in speeds:
        conventional = speed.conventional_seconds
        ratio = speed.times_conventional
        rows.append(
            [
                speed.name,
                f"{speed.image_size}x{speed.image_size}",
                f"{speed.images_per_second:,.0f}",
                f"{speed.batch_size / speed.host_seconds:,.0f}",
                f"{speed.batch_size / conventional:,.0f}" if conventional else "",
                f"{ratio:.2f}" if ratio else "",
                f"{speed.share_of_matrix_rate:.1%}",
                f"{speed.share_of_bandwidth:.1%}",
                *(f"{speed.share(part):.1%}" for part in parts),
            ]
        )
    last = speeds[-1]
    limits = (
        f"limits measured beside the last: {last.matrix_rate / 1e9:,.0f} GFLOP/s in matrix "
        f"products, {last.copy_bandwidth / 1e9:,.1f} GB/s in copies"
    )
    align = ("left", *["right"] * (len(headers) - 1))
    text = tabulate(rows, headers, "simple", colalign=align, disable_numparse=True)
    return f"{text}\n\n{limits}"


def picture(speeds: list[Speed]) -> Figure:
    """An iteration's time by parts, beside the conventional pipeline's and the least possible."""
    rows = len(speeds)
    figure = Figure(figsize=(8, 1.2 + 0.7 * rows), layout="constrained")
    axis = figure.subplots()
    shades = dict(zip(PARTS, ("#3b6", "#36a", "#69d", "#aac", "#36a", "#e83"), strict=True))
    for y, speed in enumerate(speeds):
        left = 0.0
        unit = 1000 * speed.seconds / sum(speed.parts.values())  # the loop's, in milliseconds
        for part, seconds in speed.parts.items():
            label = part if y == 0 else None
            axis.barh(y, seconds * unit, 0.35, left, color=shades[part], label=label)
            left += seconds * unit
        if speed.conventional_seconds:
            label = "conventional pipeline" if y == 0 else None
            whole = 1000 * speed.conventional_seconds
            axis.barh(y + 0.35, whole, 0.25, color="0.8", label=label)
        least = 1000 * speed.floating_point_operations / speed.matrix_rate
        label = "at the matrix product's rate" if y == 0 else None
        axis.plot([least, least], [y - 0.25, y + 0.25], color="black", lw=1.5, label=label)
    names = [f"{speed.name}\n{speed.image_size}x{speed.image_size}" for speed in speeds]
    axis.set_yticks(range(rows), names)
    axis.invert_yaxis()
    axis.set_xlabel("milliseconds an iteration")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def growth(speeds: list[Speed]) -> Figure | None:
    """An iteration's time against depth and against images; None without three of either."""
    panels = [(label, lines) for label, lines in _lines(speeds).items() if lines]
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axis, (label, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), "o-", label=name)
        axis.set_xlabel(label)
        axis.set_ylabel("seconds an iteration")
        axis.set_xlim(0)
        axis.set_ylim(0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    return figure


def _lines(speeds: list[Speed]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Growth's two panels, each with its lines of three or more points (x, seconds)."""
    by_depth: dict[str, list[tuple[int, float]]] = defaultdict(list)
    by_images: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for speed in speeds:
        pixels = f"{speed.image_size}x{speed.image_size}"
        by_depth[f"{pixels}, batches of {speed.batch_size}"].append((speed.depth, speed.seconds))
        by_images[f"{pixels}, depth {speed.depth}"].append((speed.batch_size, speed.seconds))
    return {
        label: {
            name: sorted(points)
            for name, points in lines.items()
            if len({x for x, _ in points}) >= 3
        }
        for label, lines in (("depth", by_depth), ("images an iteration", by_images))
    }
