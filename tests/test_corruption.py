"""Damaged files of a run directory: recovered from, or refused with a line; never believed.

Each trial damages one file of a run and asks for all that the program makes of it: the status,
the numbers that figures are drawn from, and the run's own command again.
"""

import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import survival
from survival import TINY, Command, one_line_only, outcome, unequal

from resrepro import interruption
from resrepro.cli import main, one_line
from resrepro.configuration.composition import expand
from resrepro.configuration.schema import Config
from resrepro.errors import Interrupted, ResreproError
from resrepro.paper.curves import collect
from resrepro.progress import Watcher
from resrepro.runs.run_directory import RunDirectory
from resrepro.runs.status import run_status, status_report
from resrepro.training.trainer import train

NAME = "residual-8-s0"
FILES = (
    "config.yaml",
    "metrics.csv",
    "summary.json",
    "checkpoint.pt",
    "checkpoint.previous.pt",
    "train.log",
)
TRIALS = survival.thorough(80, 200 * len(FILES))


@dataclass(frozen=True)
class Pristine:
    """A run as it was written, and all that there is to compare with.

    Attributes:
        path: its directory.
        numbers: the rows of its metrics.csv.
        cells: its row of the status table.
    """

    path: Path
    numbers: list[Any]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """The runs that are damaged, and those whose files are put in their place."""

    config: Config
    unbroken: dict[str, Any]
    complete: Pristine
    interrupted: Pristine
    strangers: list[Path]

    def runs(self) -> list[Pristine]:
        return [self.complete, self.interrupted]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    outputs = tmp_path_factory.mktemp("material")

    def make(place: str, *more: str, looks: int = 0) -> Path:
        """Trains a run; it is told to stop when it looks for signals the how many-th time."""
        words = [*TINY, "checkpoint_seconds=0", f"outputs={outputs / place}", *more]
        (config,) = expand("train", [words], None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            if looks:
                patch.setattr(interruption, "check", lambda: stop_at_zero(countdown))
                countdown = itertools.count(looks, -1)
                with pytest.raises(Interrupted):
                    train(config, Watcher())
            else:
                train(config, Watcher())
        return config.directory

    def stop_at_zero(countdown: Iterator[int]) -> None:
        if next(countdown) == 0:
            raise Interrupted(15)

    def pristine(path: Path) -> Pristine:
        run = RunDirectory(path)
        return Pristine(path, run.metrics(), run_status(run).cells)

    complete = pristine(make("complete"))
    interrupted = pristine(make("interrupted", looks=98))
    assert interrupted.cells[1:3] == ("interrupted", "86 / 90")
    strangers = [make("seed", "seed=1"), make("depth", "depth=14"), make("twin")]
    strangers.append(make("early", looks=40))
    assert all((run.path / file).exists() for run in (complete, interrupted) for file in FILES)
    config = expand("train", [[*TINY, f"outputs={outputs}"]], None)[0]
    return Material(config, outcome(complete.path), complete, interrupted, strangers)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


# The ways in which a file goes bad: (content, chance, the same file of other runs) to content.


def cut(content: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return content[: chance.randrange(1, len(content))]


def flip_bits(content: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 9))):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def change_a_digit(content: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    damaged = bytearray(content)
    digits = [i for i, byte in enumerate(damaged) if chr(byte).isdigit()]
    at = chance.choice(digits)
    damaged[at] = chance.choice([d for d in b"0123456789" if d != damaged[at]])
    return bytes(damaged)


def empty(_: bytes, __: random.Random, ___: list[bytes]) -> bytes:
    return b""


def lose_a_block(content: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """As a file system does that had not written it when the power went."""
    start = chance.randrange(len(content))
    length = min(chance.choice((1, 16, 512, 4096)), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def repeat_a_line(content: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    return b"".join(lines[: at + 1] + lines[at:])


def drop_a_line(content: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def add_empty_lines(content: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.insert(chance.randrange(len(lines) + 1), b"\n\n")
    return b"".join(lines)


def take_anothers(_: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    return chance.choice(others)


def make_noise(content: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return chance.randbytes(chance.choice((1, 100, len(content))))


WAYS: tuple[Callable[[bytes, random.Random, list[bytes]], bytes], ...] = (
    cut,
    flip_bits,
    flip_bits,
    change_a_digit,
    empty,
    lose_a_block,
    repeat_a_line,
    drop_a_line,
    add_empty_lines,
    take_anothers,
    take_anothers,
    make_noise,
)


def test_damaged_files_are_recovered_from_or_refused(material: Material, tmp_path: Path) -> None:
    chance = random.Random(7)
    wrong, ends = [], Counter[str]()
    # Every file, kind of run and way of damage in turn, in an order that mixes them.
    tasks = [(file, run, way) for file in FILES for run in material.runs() for way in WAYS]
    while len(tasks) < TRIALS:
        tasks += tasks
    for number, (file, run, way) in enumerate(tasks[:TRIALS]):
        others = [(stranger / file).read_bytes() for stranger in material.strangers]
        content = (run.path / file).read_bytes()
        damaged = way(content, chance, others)
        if damaged == content:
            continue
        # The checkpoint before the newest is not always there.
        gone = "checkpoint.previous.pt" if file == "checkpoint.pt" and number % 3 == 0 else None
        try:
            end = attempt(material, run, {file: damaged}, gone, tmp_path / str(number))
        except Exception as error:
            end = "wrong"
            wrong.append(
                f"{number}: {file} of {run.path.parent.parent.name}, {way.__name__}: {error!r}"
            )
        ends[end] += 1
        if number % 100 == 99:
            survival.say(f"{number + 1} of {TRIALS} corruptions: {dict(ends)}")
    assert not wrong, "\n".join(wrong)
    assert ends["recovered"] > 0.3 * TRIALS
    assert ends["refused"] > 0.05 * TRIALS


def attempt(
    material: Material, run: Pristine, damage: dict[str, bytes], gone: str | None, place: Path
) -> str:
    """Does all that can be done with a damaged run, and tells how its training ended."""
    config = replace(material.config, outputs=str(place))
    shutil.copytree(run.path, config.directory)
    for file, content in damage.items():
        (config.directory / file).write_bytes(content)
    if gone:
        (config.directory / gone).unlink()
    look_at(run, config)
    refusal = train_or_refuse(config)
    if refusal:
        look_at(run, config)
    else:
        differing = unequal(config.directory, material.unbroken)
        assert not differing, f"train ends with other numbers: {differing}"
        assert run_status(RunDirectory(config.directory)).state == "complete"
    shutil.rmtree(place)
    return "refused" if refusal else "recovered"


def train_or_refuse(config: Config) -> str | None:
    """Trains a run to its end, or returns the line that it is refused with."""
    try:
        train(config, Watcher())
    except (ResreproError, OSError) as error:
        refusal = one_line(error)
        assert one_line_only(f"{refusal}\n"), f"not one line: {refusal}"
        return refusal
    return None


def look_at(run: Pristine, config: Config) -> None:
    """Asserts that status and figures show the run's own numbers, or that it is damaged."""
    seen = run_status(RunDirectory(config.directory))
    if seen.state != "damaged":
        assert seen.cells[:1] + seen.cells[2:5] == run.cells[:1] + run.cells[2:5], "status lies"
        assert seen.state in (run.cells[1], "failed"), "status lies"
        assert seen.state != "failed" or "no checkpoint can be used" in seen.cells[-1]
    if seen.state == "damaged":
        with pytest.raises(ResreproError, match=r"\A.+\Z"):  # one line
            collect(config.outputs, config.experiment)
        return
    (group,) = collect(config.outputs, config.experiment)
    (net,) = group.nets
    drawn = [replace(row, seconds=0) for row in net.runs[0].rows]
    assert drawn == [replace(row, seconds=0) for row in run.numbers], "a figure lies"
    assert group.tag is None, "a figure would give the run another name"


def test_several_damaged_files_at_once(material: Material, tmp_path: Path) -> None:
    chance = random.Random(8)
    wrong = []
    for number in range(survival.thorough(8, 200)):
        run = chance.choice(material.runs())
        damage = {}
        for file in chance.sample(FILES, 2):
            others = [(stranger / file).read_bytes() for stranger in material.strangers]
            damage[file] = chance.choice(WAYS)((run.path / file).read_bytes(), chance, others)
        try:
            attempt(material, run, damage, None, tmp_path / str(number))
        except Exception as error:
            wrong.append(f"{number}: {', '.join(damage)}: {error!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", [*FILES, ".holder", ".lock"])
def test_missing_files(material: Material, tmp_path: Path, file: str) -> None:
    for number, run in enumerate(material.runs()):
        config = replace(material.config, outputs=str(tmp_path / str(number)))
        shutil.copytree(run.path, config.directory)
        (config.directory / file).unlink()
        if file != "config.yaml":  # without it there is no run
            look_at_missing(run, config)
        train(config, Watcher())
        assert unequal(config.directory, material.unbroken) == []


def look_at_missing(run: Pristine, config: Config) -> None:
    assert NAME in status_report(config.outputs, config.experiment)
    assert run_status(RunDirectory(config.directory)).state in ("damaged", "waiting", run.cells[1])


@pytest.mark.parametrize("file", FILES)
def test_a_folder_in_the_place_of_a_file(material: Material, tmp_path: Path, file: str) -> None:
    """Something that can be neither read nor replaced."""
    config = replace(material.config, outputs=str(tmp_path))
    shutil.copytree(material.interrupted.path, config.directory)
    (config.directory / file).unlink()
    (config.directory / file / "inside").mkdir(parents=True)
    if file != "config.yaml":
        assert NAME in status_report(config.outputs, config.experiment)
    refusal = train_or_refuse(config)
    assert refusal is None or file.removesuffix(".previous.pt").removesuffix(".pt") in refusal


def test_both_checkpoints_damaged_is_never_a_silent_restart(
    material: Material, tmp_path: Path
) -> None:
    for number, run in enumerate(material.runs()):
        config = replace(material.config, outputs=str(tmp_path / str(number)))
        shutil.copytree(run.path, config.directory)
        for file in ("checkpoint.pt", "checkpoint.previous.pt"):
            content = bytearray((run.path / file).read_bytes())
            content[len(content) // 3] ^= 16
            (config.directory / file).write_bytes(content)
        with pytest.raises(ResreproError, match=r"no checkpoint can be used .*checkpoint\.pt"):
            train(config, Watcher())


def test_the_older_checkpoint_is_used_with_a_warning(material: Material, tmp_path: Path) -> None:
    config = replace(material.config, outputs=str(tmp_path))
    shutil.copytree(material.interrupted.path, config.directory)
    with (config.directory / "checkpoint.pt").open("r+b") as file:
        file.truncate(1000)
    lines: list[str] = []
    train(config, Watcher(line=lines.append))
    assert any(line.startswith("warning: checkpoint.pt") for line in lines), lines
    assert unequal(config.directory, material.unbroken) == []


# The same through the command itself, for what it prints and how it ends.


def test_a_changed_digit_in_an_old_row(material: Material, tmp_path: Path) -> None:
    run = tmp_path / "digits" / NAME
    shutil.copytree(material.complete.path, run)
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    values = lines[2].split(",")
    values[6] = values[6].replace(values[6][0], str(9 - int(values[6][0])), 1)  # the test error
    lines[2] = ",".join(values)
    (run / "metrics.csv").write_text("".join(lines))

    def command(*words: str) -> tuple[int, str, str]:
        life = Command([*words, f"outputs={tmp_path}"], tmp_path / "log")
        return life.wait(), life.out, life.err

    status, out, err = command("status")
    assert (status, err) == (0, "")
    assert "damaged" in out
    status, out, err = command("plot")
    assert status == 1
    assert one_line_only(err)
    assert "metrics.csv is damaged" in err
    assert not list(tmp_path.rglob("*.png"))
    status, out, err = command("train", *TINY)
    assert (status, err) == (0, "")
    assert unequal(run, material.unbroken) == []
    status, out, err = command("plot")
    assert (status, err) == (0, "")
    assert len(list(tmp_path.rglob("*.png"))) == 1


@pytest.mark.parametrize("file", ["config.yaml", "summary.json", "checkpoint.pt"])
def test_what_the_command_says_of_a_damaged_file(
    material: Material, tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str
) -> None:
    run = tmp_path / "digits" / NAME
    shutil.copytree(material.interrupted.path, run)
    (run / "checkpoint.previous.pt").unlink()
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[:20])
    assert main(["status", f"outputs={tmp_path}"]) == 0
    assert capfd.readouterr().err == ""
    status = main(["train", *TINY, f"outputs={tmp_path}"])
    said = capfd.readouterr().err
    if status == 0:
        assert unequal(run, material.unbroken) == []
    else:
        assert status in (1, 2)
        assert one_line_only(said), said
        assert file in said
    assert (status == 0) == (file == "summary.json")
