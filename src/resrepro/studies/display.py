"""A study on the terminal."""

import sys
from typing import Any, Self

from resrepro.configuration.schema import Config
from resrepro.progress import Progress, bar, fitting, screen, tenths
from resrepro.runs.status import several
from resrepro.studies.plan import cost


class Display:
    """A bar for all runs of a study and one for each that goes on, and what happens to each.

    Where there is no terminal, a line each tenth of a run in their place.

    Attributes:
        failures: the runs that ended by an error, by what it said.
    """

    TOTAL = "{desc}: {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}"
    RUN = "  {desc} {percentage:3.0f}%|{bar:10}| "

    def __init__(self, name: str, runs: list[Config], waiting: list[Config], at_once: int) -> None:
        self.costs = {run.name: cost(run) for run in runs}
        self.done = {run.name: 0.0 if run in waiting else 1.0 for run in runs}
        self.running: dict[str, Progress] = {}
        self.failures: dict[str, list[str]] = {}
        self.log_lines = {run.name: tenths(run.name) for run in waiting}
        self.widest = max(map(len, self.log_lines))
        begun = self._weight()
        self.bar = bar(sum(self.costs.values()), name, "", initial=begun, bar_format=self.TOTAL)
        self.lines: list[Any] = []
        if not self.bar.disable:
            room = max(0, screen().lines - 3)  # tqdm keeps the last two to itself
            self.lines = [
                bar(1, "", "", position=1 + i, leave=False, bar_format="{desc}")
                for i in range(min(at_once, room))
            ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for line in reversed(self.lines):
            line.close()
        self.bar.close()
        for names in self.failures.values():
            if len(names) > 1:
                print(f"{several(names[1:])}: the same", flush=True)

    def _weight(self) -> float:
        return sum(self.costs[name] * share for name, share in self.done.items())

    def say(self, line: str) -> None:
        """Writes a line above the bars."""
        self.bar.write(line)
        sys.stdout.flush()

    def fail(self, run: Config, reason: str) -> None:
        """Takes in that a run failed; of one reason only the first run is told at once."""
        names = self.failures.setdefault(reason, [])
        names.append(run.name)
        if len(names) == 1:
            self.say(f"{run.name}: {reason}")

    def progress(self, run: Config, now: Progress) -> None:
        """Takes in how far a run is."""
        if self.bar.disable:
            if line := self.log_lines[run.name](now):
                self.say(line)
            return
        if run.name not in self.running:
            # What a resumed run had done before took no time now.
            self.bar.initial += self.costs[run.name] * now.share
        self.running[run.name] = now
        self.done[run.name] = now.share

    def end(self, run: Config) -> None:
        """Takes in that a run's process has ended."""
        self.running.pop(run.name, None)

    def refresh(self) -> None:
        """Draws the bars anew."""
        if self.bar.disable:
            return
        complete = sum(share == 1 for share in self.done.values())
        self.bar.n, self.bar.postfix = self._weight(), None
        runs = [f"{complete} of {counted(len(self.done), 'run')}"]
        self.bar.postfix = fitting(runs, screen().columns - len(str(self.bar)) - 3)
        self.bar.refresh()
        running = list(self.running.items())
        shown = len(self.lines) if len(running) <= len(self.lines) else len(self.lines) - 1
        for line, (name, now) in zip(self.lines, running[:shown], strict=False):
            line.bar_format, line.desc = self.RUN, f"{name:{self.widest}}"
            line.n = now.share
            line.bar_format += fitting(now.parts(), screen().columns - len(str(line)) - 1)
            line.refresh()
        for line in self.lines[len(running[:shown]) :]:
            line.bar_format, line.desc = "{desc}", ""
            if line is self.lines[-1] and len(running) > shown:
                line.desc = f"  and {len(running) - shown} more"
            line.refresh()


def counted(count: int, word: str) -> str:
    """1 run, 2 runs."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def done_of(runs: list[Config], missing: list[Config]) -> str:
    """8 runs, 3 of them done."""
    return f"{counted(len(runs), 'run')}, {len(runs) - len(missing)} of them done"
