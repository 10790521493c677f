"""What a study would do and take: `resrepro reproduce … --dry-run`.

The time is that of runs before and of `resrepro bench`, of the same nets on images of the same
size. Nothing is guessed for a machine on which nothing was measured.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

from resrepro import extension
from resrepro.configuration.schema import Config
from resrepro.errors import ResreproError, one_line
from resrepro.runs.run_directory import RunDirectory, find_experiments, find_runs
from resrepro.runs.status import run_status
from resrepro.studies.display import counted, done_of
from resrepro.studies.plan import Plan

PIXELS = {"cifar10": 32, "cifar100": 32, "digits": 8}  # a side, as the images come


@dataclass(frozen=True)
class Measured:
    """How fast a net was trained.

    Attributes:
        device: cpu, or the GPU's name.
        kind: all but depth that a net's speed depends on.
        depth: of the net.
        images_per_second: that it was trained on, evaluations left out.
        cores: that it took of a CPU.
        source: where this is known from, in words.
    """

    device: str
    kind: tuple[Any, ...]
    depth: int
    images_per_second: float
    cores: int
    source: str


def forecast(plan: Plan) -> Iterator[str]:
    """What a study would do, in lines: its runs, and the time on each device that was measured.

    Raises:
        ResreproError: bench.json cannot be read.
    """
    statuses = {run.name: run_status(RunDirectory(run.directory)) for run in plan.runs}
    missing = [run for run in plan.runs if not statuses[run.name].is_finished]
    rest = {run.name: run.recipe.iterations - statuses[run.name].iteration for run in missing}
    measured = [*past_runs(plan.outputs), *bench(plan.outputs)] if missing else []
    hours: dict[str, list[float | None]] = {}
    for device in sorted({one.device for one in measured}):
        here = [_seconds_an_image(run, device, measured) for run in missing]
        if any(here):
            hours[device] = [
                seconds and rest[run.name] * run.recipe.batch_size * seconds / 3600
                for run, seconds in zip(missing, here, strict=True)
            ]
    yield f"study {plan.name}: {done_of(plan.runs, missing)}; to be made:\n"
    table = {
        "run": [run.name for run in missing],
        "state": [statuses[run.name].state for run in missing],
        "iterations": [f"{rest[run.name]:,}" for run in missing],
    } | {
        f"hours, {device}": [_figures(h) if h is not None else "?" for h in column]
        for device, column in hours.items()
    }
    if not missing:
        yield "no run\n"
        return
    align = ["left", "left", *["right"] * (1 + len(hours))]
    yield tabulate(table, "keys", "simple", colalign=align, disable_numparse=True) + "\n"
    for device, column in hours.items():
        yield _in_all(device, missing, column, measured)
    if hours:
        yield "Evaluations, constructed solutions and figures come on top."
    else:
        yield "No such net was trained or timed yet; this times it on this machine:"
    if not hours or any(None in column for column in hours.values()):
        yield f"  {_how_to_measure(missing)}"


def _in_all(
    device: str, runs: list[Config], hours: list[float | None], measured: list[Measured]
) -> str:
    """The sum over runs, and what it is known from."""
    known = [h for h in hours if h is not None]
    used = [_nearest(run, device, measured) for run in runs]
    sources = list(dict.fromkeys(one.source for near in used for one in near))
    text = f"{_figures(sum(known))} GPU-hours"
    if device == "cpu":
        cores = max(one.cores for near in used for one in near)
        text = f"{_figures(cores * sum(known))} core-hours, {counted(cores, 'core')} a run"
    unknown = f", without {counted(len(hours) - len(known), 'run')}" if None in hours else ""
    scaled = {
        run.depth
        for run, near in zip(runs, used, strict=True)
        for one in near
        if one.depth != run.depth
    }
    depths = ", ".join(map(str, sorted(scaled)))
    by_depth = f"; depth {depths} in proportion to the nearest measured" if scaled else ""
    return f"{device}: about {text}{unknown}, from {' and '.join(sources)}{by_depth}"


def _seconds_an_image(run: Config, device: str, measured: list[Measured]) -> float | None:
    """Of training; in proportion to the depth where only another was measured."""
    if near := _nearest(run, device, measured):
        return median(run.depth / one.depth / one.images_per_second for one in near)
    return None


def _nearest(run: Config, device: str, measured: list[Measured]) -> list[Measured]:
    """What was measured of the same net on a device, of the depth that is nearest."""
    same = [one for one in measured if one.device == device and one.kind == _kind(run)]
    nearest = min((abs(one.depth - run.depth) for one in same), default=0)
    return [one for one in same if abs(one.depth - run.depth) == nearest]


def _kind(run: Config) -> tuple[Any, ...]:
    pixels = run.data.image_size or PIXELS.get(run.data.name) or run.data.name
    model = (run.model.name, run.model.shortcut, run.model.width)
    return (*model, pixels, run.recipe.batch_size, run.precision, run.compile)


def past_runs(outputs: str) -> Iterator[Measured]:
    """How fast the runs there are were trained, of every experiment."""
    for experiment in find_experiments(outputs):
        for run in find_runs(outputs, experiment):
            try:
                config, summary = run.config(), run.summary() or {}
            except ResreproError:
                continue  # `resrepro status` tells of it
            if (speed := summary.get("images_per_second")) and not config.constructed:
                device, threads = summary.get("device", "cpu"), summary.get("threads", 1)
                yield Measured(
                    device, _kind(config), config.depth, speed, threads, f"runs of {experiment}"
                )


def bench(outputs: str) -> Iterator[Measured]:
    """How fast `resrepro bench` trained nets of the paper's width, with shortcuts A."""
    file = Path(outputs).expanduser() / "bench" / "bench.json"
    if not file.exists():
        return
    try:
        report = json.loads(file.read_bytes())
        how = (report.get("precision", "float32"), report.get("compile", False))
        for speed in report["speeds"]:
            family = speed["name"].partition("-")[0]
            model = (family, "A" if extension.takes_shortcut(family) else None, 16)
            kind = (*model, speed["image_size"], speed["batch_size"], *how)
            yield Measured(
                report["device"],
                kind,
                speed["depth"],
                speed["images_per_second"],
                report["threads"],
                str(file),
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResreproError(f"{file} cannot be read: {one_line(error)}") from error


def _how_to_measure(runs: list[Config]) -> str:
    """The bench of some runs' nets."""

    def all_of(values: Iterator[Any]) -> str:
        return ",".join(map(str, sorted(set(values))))

    pixels = {run.data.image_size or PIXELS.get(run.data.name, 32) for run in runs}
    words = [
        f"model={all_of(run.model.name for run in runs)}",
        f"depth={all_of(run.depth for run in runs)}",
        f"image_size=[{all_of(iter(pixels))}]",
        f"recipe.batch_size={all_of(run.recipe.batch_size for run in runs)}",
        f"precision={runs[0].precision}",
    ]
    return f"resrepro bench {' '.join(words)} outputs={runs[0].outputs}"


def _figures(hours: float) -> str:
    """Hours with two significant figures, as estimates are."""
    return f"{float(f'{hours:.2g}'):,g}"
