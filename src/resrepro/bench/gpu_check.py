"""What to prove on a GPU, in order of importance, within a time budget: see docs/gpu.md.

Each part's result is kept in results.json, and a part that is there is not done again; runs go on
from their checkpoints. So a short lease of a machine suffices, several times over.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from resrepro.bench import speed
from resrepro.configuration.composition import expand
from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError
from resrepro.files import write_atomically
from resrepro.runs.provenance import provenance
from resrepro.runs.run_directory import RunDirectory
from resrepro.studies import cards
from resrepro.training import devices

SMALL_FILES = ("config.yaml", "metrics.csv", "summary.json", "responses.json")
SMALL_SUFFIXES = (".png", ".svg", ".md", ".csv", ".json", ".html")
RESERVE = 90.0  # seconds that the study leaves for what comes after it
TESTS = Path(__file__).parents[3] / "tests"  # of a clone
TOLERANCE = 1e-4  # relative, of losses from the same weights: float32 rounds them by some 1e-6


@dataclass(frozen=True)
class Sizes:
    """How large everything is: as on a GPU, or tiny."""

    data: list[str]
    depths: tuple[int, ...]
    deepest: int
    modes: tuple[str, ...]
    precisions: tuple[str, ...]
    at_once: tuple[int, ...]
    followed: int
    killed: list[str]
    study: list[str]
    seconds: float
    pixels: int


def real_sizes(data: str | None) -> Sizes:
    """As on a GPU."""
    images = ["data=image_folder", f"data.root={data}"] if data else ["data=cifar10"]
    return Sizes(
        data=images,
        depths=(20, 56, 110),
        deepest=1202,
        modes=("eager", "graph", "compiled"),
        precisions=("float32", "tf32", "bfloat16"),
        at_once=(1, 2, 4, 8),
        followed=50,
        killed=["depth=20", "recipe.iterations=1500", "evaluate_every=300"],
        study=["study=figure6", "recipe.iterations=16000"],
        seconds=0.5,
        pixels=32,
    )


def tiny_sizes() -> Sizes:
    """To walk through all of it within a minute on a CPU."""
    return Sizes(
        data=["data=digits", "recipe=digits", "model.width=4", "threads=1"],
        depths=(8,),
        deepest=20,
        modes=("eager",),
        precisions=("float32",),
        at_once=(2,),
        followed=12,
        killed=["depth=8", "recipe.iterations=200", "evaluate_every=20"],
        study=["study=smoke", "recipe.iterations=10"],
        seconds=0.05,
        pixels=8,
    )


@dataclass
class Check:
    """The steps' common ground.

    Attributes:
        sizes: of everything.
        device: auto, cpu, cuda or cuda:N.
        output: where results and runs lie.
        deadline: by the monotonic clock.
        tests: the folder of resrepro's tests, or one of its files.
        results: of the parts that are done, by their names.
    """

    sizes: Sizes
    device: str
    output: Path
    deadline: float
    tests: Path = TESTS
    results: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds of the budget."""
        return self.deadline - time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[Any], None] | None]:
        """Gives what takes a part's result; None where it is there, or the time is up."""
        if name in self.results:
            yield None
            return
        if self.left() <= 0:
            print(f"{name}: no time left", flush=True)
            yield None
            return
        began = time.monotonic()

        def keep(result: Any) -> None:
            self.results[name] = {"result": result, "seconds": time.monotonic() - began}
            write_atomically(
                self.output / "results.json", json.dumps(self.results, indent=2).encode()
            )
            print(f"{name}: {json.dumps(result)[:200]}", flush=True)

        try:
            yield keep
        except Exception as error:  # the other parts are worth having, too
            keep({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[-500:]}"})

    def configs(self, *words: str) -> list[Config]:
        """Configurations of runs on this check's data and device."""
        where = [f"outputs={self.output / 'runs'}", f"device={self.device}"]
        return expand("train", [[*self.sizes.data, *where, *words]], None)

    def command(self, *words: str) -> list[str]:
        """A resrepro command on this check's data."""
        return [sys.executable, "-m", "resrepro", *words[:1], *self.sizes.data, *words[1:]]


def tests(check: Check) -> None:
    """Step 1: the tests that need a GPU (and skip themselves elsewhere)."""
    with check.part("1 tests marked gpu") as keep:
        place = check.tests
        if keep and not place.exists():
            keep(
                {
                    "failed": f"{place} is not there, and an installed package has no tests; "
                    "--tests names the folder of a clone"
                }
            )
        elif keep:
            words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
            done = subprocess.run(
                [*words, str(place)],
                cwd=place.parent,
                capture_output=True,
                text=True,
                check=False,
            )
            last = [line for line in done.stdout.splitlines() if line.strip()][-3:]
            keep({"status": done.returncode, "end": last})


def follow(check: Check) -> None:
    """Step 1: from the same weights, each of the first losses in float32 is that of a CPU."""
    for model in ("plain", "residual"):
        with check.part(f"1 {model} follows the CPU") as keep:
            if keep:
                words = (f"model={model}", f"depth={check.sizes.depths[0]}", "deterministic=true")
                (here,) = check.configs(*words)
                ours, theirs = losses_of_two(
                    here, replace(here, device="cpu"), check.sizes.followed
                )
                apart = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
                keep(
                    {
                        "largest difference": apart,
                        "passed": apart < TOLERANCE,
                        "device": ours,
                        "cpu": theirs,
                    }
                )


def losses_of_two(one: Config, other: Config, count: int) -> tuple[list[float], list[float]]:
    """The training losses of both over the first iterations of the other, on its data.

    Before each iteration the one is given the other's weights and momentum. By themselves two runs
    that round differently part: tenfold and more an iteration at a rate of 0.1.
    """
    from resrepro.data import load

    found: tuple[list[float], list[float]] = ([], [])
    data = load(other.data)
    # A captured step would go on with the momentum that it was captured with.
    eager = replace(one, cuda_graph=False)
    with speed.prepared(eager, data) as follower, speed.prepared(other, data) as leader:
        for _ in range(count):
            leader.step.begin_row()
            follower.step.load_state(leader.step.state() | {"learning_rate": 0.0})
            for training, losses in zip((follower, leader), found, strict=True):
                training.iterate()
                losses.append(training.step.read().loss)
    return found


def killed(check: Check) -> None:
    """Step 2: a run that was killed and resumed equals an unbroken one, to the bit."""
    with check.part("2 killed and resumed") as keep:
        if keep:
            experiment = check.output / "runs" / "killed"
            words = check.command(
                "train",
                *check.sizes.killed,
                "deterministic=true",
                "checkpoint_seconds=0.5",
                f"device={check.device}",
                f"outputs={check.output / 'runs'}",
                "experiment=killed",
            )
            kills = 0
            process = subprocess.Popen([*words, "tag=broken"], stdout=subprocess.DEVNULL)
            while process.poll() is None:
                checkpoint = next(experiment.glob("*-broken/checkpoint.pt"), None)
                if checkpoint and not kills:
                    process.kill()
                    kills += 1
                    process.wait()
                    process = subprocess.Popen([*words, "tag=broken"], stdout=subprocess.DEVNULL)
                time.sleep(0.01)
            subprocess.run([*words, "tag=whole"], check=True, stdout=subprocess.DEVNULL)
            (broken,) = experiment.glob("*-broken")
            (whole,) = experiment.glob("*-whole")
            rows = [
                [replace(row, seconds=0.0) for row in RunDirectory(run).metrics()]
                for run in (broken, whole)
            ]
            one, other = (weights(run) for run in (broken, whole))
            same = all(torch.equal(one[name], other[name]) for name in other)
            keep({"kills": kills, "passed": bool(kills) and rows[0] == rows[1] and same})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a run's checkpoint."""
    run = RunDirectory(folder)
    checkpoint, _ = run.load_checkpoint(run.config())
    assert checkpoint is not None
    return dict(checkpoint["network"])


def fast(check: Check) -> None:
    """Step 3: the speed of each way to compute, beside the card's limits."""
    switches = {
        "eager": ["cuda_graph=false"],
        "graph": ["cuda_graph=true"],
        "compiled": ["compile=true"],
    }
    for mode in check.sizes.modes:
        for precision in check.sizes.precisions:
            for depth in check.sizes.depths:
                with check.part(f"3 depth {depth}, {mode}, {precision}") as keep:
                    if keep:
                        words = [f"depth={depth}", f"precision={precision}", *switches[mode]]
                        (config,) = check.configs(*words)
                        conventional = (mode, precision) == ("eager", "float32")
                        settings = speed.Settings(
                            [check.sizes.pixels], 3, check.sizes.seconds, conventional
                        )
                        keep(speed.in_full(speed.measure(config, check.sizes.pixels, settings)))


def at_once(check: Check) -> None:
    """Step 3: several runs at once on the one card, in turns or, by MPS, side by side."""
    how = ", by MPS" if cards.runs_side_by_side() else ""
    for count in check.sizes.at_once:
        with check.part(f"3 {count} at once{how}") as keep:
            if keep:
                (config,) = check.configs(f"depth={check.sizes.depths[0]}")
                context = mp.get_context("spawn")
                barrier, speeds = context.Barrier(count), context.SimpleQueue()
                arguments = (config, check.sizes.pixels, 5 * check.sizes.seconds, barrier, speeds)
                mp.spawn(run_for, arguments, nprocs=count)  # type: ignore[attr-defined, no-untyped-call]
                found = [speeds.get() for _ in range(count)]
                keep({"images a second in all": sum(found), "of each": found})


def run_for(_: int, config: Config, pixels: int, seconds: float, barrier: Any, speeds: Any) -> None:
    """Trains for some time, when all are ready, and tells the images a second."""
    with speed.prepared(config, speed.random_pixels(pixels)) as training:
        clock = speed.Clock(training.step.device)
        clock.time(training.iterate, 5)
        barrier.wait(timeout=300)
        began, iterations = clock.now(), 0
        while clock.now() - began < seconds:
            clock.time(training.iterate, 10)
            iterations += 10
        speeds.put(iterations * config.recipe.batch_size / (clock.now() - began))


def study(check: Check) -> None:
    """Step 4: the study, as far as the time goes."""
    name = "4 the study"
    before = check.results.get(name, {}).get("result", {})
    if before.get("complete"):
        return
    check.results.pop(name, None)
    with check.part(name) as keep:
        if keep:
            words = check.command(
                "reproduce",
                *check.sizes.study,
                f"device={check.device}",
                f"outputs={check.output / 'runs'}",
            )
            process, cut_off = subprocess.Popen(words), False
            try:
                status = process.wait(max(1.0, check.left() - RESERVE))
            except subprocess.TimeoutExpired:
                cut_off = True
                process.send_signal(signal.SIGINT)
                status = process.wait(60)
            outcome = {"status": status, "command": " ".join(words[2:])}
            keep({"complete": status == 0, "passed": status == 0 or cut_off, **outcome})


def memory(check: Check) -> None:
    """Step 5: the deepest net's peak memory, with and without activation checkpointing."""
    for value in ("false", "true"):
        with check.part(f"5 depth {check.sizes.deepest}, activation_checkpointing={value}") as keep:
            if keep:
                words = check.command(
                    "train",
                    f"depth={check.sizes.deepest}",
                    "recipe.iterations=10",
                    f"activation_checkpointing={value}",
                    f"device={check.device}",
                    f"outputs={check.output / 'runs'}",
                    "experiment=memory",
                    f"tag=ac-{value}",
                )  # in a process of its own, whose peak it is
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                run = RunDirectory(
                    check.output
                    / "runs"
                    / "memory"
                    / f"residual-{check.sizes.deepest}-s0-ac-{value}"
                )
                summary = run.summary() if run.exists() else None
                keep(
                    {
                        "status": done.returncode,
                        "error": done.stderr.strip()[-300:],
                        "peak GiB": summary and summary["peak_memory_bytes"] / 2**30,
                    }
                )


STEPS = (tests, follow, killed, fast, at_once, study, memory)


def summary(check: Check, arguments: list[str]) -> str:
    """All results there are, as Markdown."""
    device = devices.select(check.device)
    whence = provenance()
    versions = whence.pop("versions")
    lines = [
        f"# What was measured on {devices.describe(device)}",
        "",
        f"`scripts/gpu_check {' '.join(arguments)}`",
        "",
        *(f"- {key}: {value}" for key, value in (whence | versions).items()),
        "",
        "| part | result | seconds |",
        "| --- | --- | --- |",
    ]
    for name, entry in sorted(check.results.items()):
        lines.append(f"| {name} | {in_words(entry['result'])} | {entry['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def in_words(result: dict[str, Any]) -> str:
    """A part's result in a cell."""
    if "images_per_second" in result:
        ratio = result["times_conventional"]
        beside = f", {ratio:.2f} times the conventional pipeline" if ratio else ""
        return (
            f"{result['images_per_second']:,.0f} images/s{beside}, {result['times_from_host']:.2f} "
            "times as long with images in host memory; "
            f"{result['share_of_matrix_rate']:.1%} of {result['matrix_rate'] / 1e12:.1f} TFLOP/s, "
            f"{result['share_of_bandwidth']:.1%} of {result['copy_bandwidth'] / 1e9:,.0f} GB/s"
        )
    parts = {k: v for k, v in result.items() if not isinstance(v, list) or len(v) <= 8}
    return "; ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in parts.items()
    ).replace("|", "/")


def pack(output: Path) -> Path:
    """All small files in one archive: what is worth taking home."""
    archive = output / "small.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(output.rglob("*")):
            if file.name in SMALL_FILES or file.suffix in SMALL_SUFFIXES:
                tar.add(file, file.relative_to(output))
    return archive


def main(arguments: list[str]) -> int:
    """Does what the time allows; 1 if something that was done did not pass."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__)
    parser.add_argument("seconds", type=float, help="the time budget")
    parser.add_argument(
        "--data", help="folder with train/<class>/ and test/<class>/; else CIFAR-10"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--tests", type=Path, default=TESTS)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on digits")
    options = parser.parse_args(arguments)
    sizes = tiny_sizes() if options.dry_run else real_sizes(options.data)
    try:
        devices.select(options.device)
    except ConfigError as error:
        parser.error(str(error))
    if options.data and not Path(options.data).is_dir():
        parser.error(f"--data {options.data}: there is no such folder")
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    check = Check(sizes, options.device, output, deadline, options.tests.absolute())
    wanted = {"device": options.device, "sizes": json.loads(json.dumps(asdict(sizes)))}
    kept = output / "results.json"
    settings = output / "settings.json"
    if kept.exists():
        if json.loads(settings.read_text()) != wanted:
            print(f"{output} holds a check with other sizes; give another --output")
            return 2
        check.results = json.loads(kept.read_text())
    write_atomically(settings, json.dumps(wanted).encode())
    os.environ.setdefault("RESREPRO_DATA", str(output / "data"))
    for step in STEPS:
        step(check)
    write_atomically(output / "summary.md", summary(check, arguments).encode())
    print(f"{output / 'summary.md'}\n{pack(output)}")
    return int(any(not passed(entry["result"]) for entry in check.results.values()))


def passed(result: dict[str, Any]) -> bool:
    """Whether a part's result is what it should be; a study may be cut off by the time."""
    if "failed" in result:
        return False
    return bool(result.get("passed", result.get("status", 0) == 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
