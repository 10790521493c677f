"""How long work tells of itself: bars on a terminal, a few lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

LINES_A_RUN = 10  # where there is no terminal


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
        errors = [f"{n} {e:.1f}%" for n, e in self.errors().items()]
        speed = [f"{self.images_per_second:,.0f} images/s"] if self.images_per_second else []
        return ", ".join(errors + speed)

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


@contextmanager
def console(name: str, iterations: int) -> Iterator[Watcher]:
    """Shows a single run: as a bar, or as a line each tenth of it."""
    if not sys.stderr.isatty():
        yield _lines(name)
        return
    with bar(iterations, name, "it") as shown:

        def progress(now: Progress) -> None:
            if shown.n == 0 and now.iteration > 1:
                shown.reset(iterations)  # a resumed run's speed is not that of its first part
                shown.initial = now.iteration
            shown.n = now.iteration
            shown.set_postfix_str(str(now))

        yield Watcher(progress, lambda line: shown.write(line, file=sys.stderr))


def _lines(name: str) -> Watcher:
    told = -1

    def progress(now: Progress) -> None:
        nonlocal told
        tenth = int(LINES_A_RUN * now.share)
        if tenth > told:
            told = tenth
            print(f"{name}: iteration {now.iteration:,} of {now.iterations:,}: {now}", flush=True)

    return Watcher(progress, lambda line: print(line, flush=True))


def duration(seconds: float) -> str:
    """Seconds as people write them: 45 s, 3:20 min, 2:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"
