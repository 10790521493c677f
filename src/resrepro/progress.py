"""How long work tells of itself: bars on a terminal, a few lines elsewhere."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

LINES_A_RUN = 10  # where there is no terminal
PACE_SECONDS = 5.0  # over which the speed is measured that tells how long a run will take
LONG_SECONDS = 3600.0  # a run that will take longer says so as it begins


@dataclass(frozen=True)
class Progress:
    """How far a run is. Errors in percent; None where not yet measured."""

    iteration: int
    iterations: int
    train_error: float | None = None
    test_error: float | None = None
    images_per_second: float | None = None

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.iteration / self.iterations if self.iterations else 1.0

    def __str__(self) -> str:
        return ", ".join(self.parts())

    def parts(self) -> list[str]:
        """What is known, in words, the more important first."""
        errors = [f"{n} {e:.1f}%" for n, e in self.errors().items()]
        speed = [f"{self.images_per_second:,.0f} images/s"] if self.images_per_second else []
        return errors + speed

    def errors(self) -> dict[str, float]:
        """The errors there are, by split."""
        errors = {"train": self.train_error, "test": self.test_error}
        return {name: error for name, error in errors.items() if error is not None}


@dataclass
class Watcher:
    """Who is told how a run goes: `progress` often, `line` what is worth reading later."""

    progress: Callable[[Progress], None] = lambda _: None
    line: Callable[[str], None] = lambda _: None


def bar(total: float | None, description: str, unit: str, **options: Any) -> "tqdm[Any]":
    """A tqdm bar on standard error; hidden where that is no terminal."""
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        **options,
    )


def screen() -> os.terminal_size:
    """Columns and lines of the terminal that bars are on."""
    return os.get_terminal_size(sys.stderr.fileno())


def fitting(parts: list[str], room: int) -> str:
    """As many of the parts, the first ones, as there is room for, with commas."""
    while parts and len(", ".join(parts)) > room:
        parts = parts[:-1]
    return ", ".join(parts)


@contextmanager
def console(name: str, iterations: int) -> Iterator[Watcher]:
    """Shows a single run: as a bar, or as a line each tenth of it."""
    if not sys.stderr.isatty():
        line_of = tenths(name)

        def log(now: Progress) -> None:
            if line := line_of(now):
                print(line, flush=True)

        yield Watcher(log, lambda line: print(line, flush=True))
        return
    form = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
    shown: list[tqdm[Any]] = []  # from the first news on: it says where a resumed run goes on

    # Writing to a terminal that was closed fails, at times before the signal that says so has come.
    def progress(now: Progress) -> None:
        with suppress(OSError):
            if not shown:
                shown.append(bar(iterations, name, "it", initial=now.iteration, bar_format=form))
            (it,) = shown
            it.n, it.postfix = now.iteration, None
            it.postfix = fitting(now.parts(), screen().columns - len(str(it)) - 3)
            it.refresh()

    def line(text: str) -> None:
        with suppress(OSError):
            tqdm.write(text, file=sys.stderr)

    try:
        yield Watcher(progress, line)
    finally:
        with suppress(OSError):
            for it in shown:
                it.close()


def tenths(name: str) -> Callable[[Progress], str | None]:
    """A log's lines of a run: one each tenth of it, and none where nothing is known."""
    last = -1

    def line(now: Progress) -> str | None:
        nonlocal last
        tenth = int(LINES_A_RUN * now.share)
        if tenth == last or not now.parts():
            return None
        last = tenth
        return f"{name}: iteration {now.iteration:,} of {now.iterations:,}: {now}"

    return line


def forecast(name: str, iterations: int) -> Callable[[int, float], str | None]:
    """What a long run is said to take, once, by its speed in some seconds near its beginning.

    Returns:
        A function of the iteration and the time, which is to be called now and then.
    """
    began: tuple[int, float] | None = None  # the first call's: what comes before is slower
    is_given = False

    def line(iteration: int, now: float) -> str | None:
        nonlocal began, is_given
        began = began or (iteration, now)
        done, seconds = iteration - began[0], now - began[1]
        if is_given or not done or seconds < PACE_SECONDS:
            return None
        is_given = True
        left = (iterations - iteration) * seconds / done
        if left < LONG_SECONDS:
            return None
        return f"{name} takes about {duration(left)} at this speed; recipe.iterations=N shortens it"

    return line


def duration(seconds: float) -> str:
    """Seconds as people write them: 45 s, 3:20 min, 2:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"
