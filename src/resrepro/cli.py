"""The command line: `resrepro COMMAND key=value …`.

Each command is a function that imports what it needs, so that help answers at once.
"""

import sys

try:
    import difflib
    import io
    import os
    import select
    import signal
    from collections.abc import Callable
    from contextlib import suppress
    from dataclasses import dataclass, replace

    from resrepro import __version__, extension, interruption
    from resrepro.errors import ConfigError, Interrupted, ResreproError, one_line
except KeyboardInterrupt:  # before `main` can look after it
    sys.exit(130)


DRY_RUN = "--dry-run"


@dataclass(frozen=True)
class Command:
    """A word of the command line: what it does, in a line, and the function that does it."""

    summary: str
    run: Callable[[list[str]], int]


def train(words: list[str]) -> int:
    """Trains one run, or with -m a sweep of them through Hydra's launcher."""
    from resrepro.configuration.composition import compose, parse

    if (args := parse(words)).multirun and not (args.help or args.cfg):
        from resrepro.studies.sweep import train_sweep

        return train_sweep(words)
    for composed in compose("train", words):
        from resrepro.configuration.schema import from_mapping
        from resrepro.studies.sweep import train_one

        train_one(from_mapping(composed))
    return 0


def construct(words: list[str]) -> int:
    """Makes a deeper net from a trained one by identity layers."""
    from resrepro.configuration.composition import compose
    from resrepro.configuration.schema import Construct, from_mapping, typed

    asked = [typed(Construct, composed) for composed in compose("construct", words)]
    for one in asked:
        for key, example in (("run", "outputs/digits/plain-20-s0"), ("depth", "56")):
            if getattr(one, key) is None:
                raise ConfigError(f"{key} is not given, as in {key}={example}")

    from pathlib import Path

    from resrepro.runs.run_directory import RunDirectory
    from resrepro.studies.constructed import constructed_from
    from resrepro.studies.sweep import train_one

    for one in asked:
        source = RunDirectory(Path(str(one.run)))
        if not source.exists():
            raise ConfigError(f"run={one.run}: there is no run; name one's directory")
        made = constructed_from(source, int(one.depth or 0), one.recipe.iterations)
        train_one(from_mapping(replace(made, device=one.device).to_dict(), is_used=False))
    return 0


def reproduce(words: list[str]) -> int:
    """Runs a study, then makes its figures and table."""
    from resrepro.configuration.composition import compose, parse, split_words
    from resrepro.studies.plan import OWN_KEYS, plan_study

    is_dry, words = DRY_RUN in words, [word for word in words if word != DRY_RUN]
    own, of_runs = split_words(words, OWN_KEYS)
    config_dir = parse(own).config_dir
    plans = [plan_study(one, of_runs, config_dir) for one in compose("reproduce", own)]
    incomplete = 0
    for plan in plans:
        if is_dry:
            from resrepro.studies.estimate import forecast

            for line in forecast(plan):
                print(line)
            continue

        from resrepro.studies.launchers import launcher
        from resrepro.studies.study import run_study

        missing, elsewhere = run_study(plan, launcher(own, plan))
        if elsewhere:
            print(
                f"{elsewhere} of {len(plan.runs)} runs go on without this command; given again, it "
                "trains what is missing then, and makes the figures when all are complete"
            )
            continue
        incomplete += missing

        from resrepro.paper.artefacts import make_artefacts

        for line in make_artefacts(plan.outputs, plan.experiment, plan.artefacts):
            print(line)
    if incomplete:
        runs = sum(len(plan.runs) for plan in plans)
        raise ResreproError(f"{incomplete} of {runs} runs are not complete")
    return 0


def plot(words: list[str]) -> int:
    """Draws figures from the run directories there are."""
    from resrepro.configuration.composition import compose
    from resrepro.configuration.schema import Plot, typed

    figures: dict[tuple[str, str | None], list[str]] = {}
    for composed in compose("plot", words):
        asked = typed(Plot, composed)
        names = asked.figure if isinstance(asked.figure, list) else [asked.figure]
        figures.setdefault((asked.outputs, asked.experiment), []).extend(map(str, names))
    for place, names in figures.items():
        from resrepro.paper.figures import check_names

        check_names(names)
        _make(*place, names)
    return 0


def report(words: list[str]) -> int:
    """Makes every artefact there can be of an experiment, and the page that shows them."""
    from resrepro.configuration.composition import compose
    from resrepro.configuration.schema import Place, typed

    for asked in [typed(Place, composed) for composed in compose("report", words)]:
        _make(asked.outputs, asked.experiment, ["report"])
    return 0


def _make(outputs: str, experiment: str | None, artefacts: list[str]) -> None:
    from resrepro.paper.artefacts import make_artefacts
    from resrepro.paper.curves import choose_experiment

    for line in make_artefacts(outputs, choose_experiment(outputs, experiment), artefacts):
        print(line)


def status(words: list[str]) -> int:
    """Prints a table of the runs there are; with --watch again and again."""
    from resrepro.configuration.composition import compose
    from resrepro.configuration.schema import Place, typed

    others = [word for word in words if word != "--watch"]
    places = [typed(Place, composed) for composed in compose("status", others)]
    if others != words and len(places) > 1:
        raise ConfigError("--watch: shows one experiment, or all; name one")
    for number, asked in enumerate(places):
        from resrepro.runs.status import status_report, watch

        if others != words:
            with suppress(KeyboardInterrupt):  # its end
                watch(asked.outputs, asked.experiment)
        else:
            print("\n" * bool(number) + status_report(asked.outputs, asked.experiment))
    return 0


def data(words: list[str]) -> int:
    """Fetches, verifies and prepares a data set."""
    from resrepro.configuration.composition import compose
    from resrepro.configuration.schema import data_from_mapping

    for wanted in [data_from_mapping(composed.data) for composed in compose("data", words)]:
        from resrepro.data import load
        from resrepro.interruption import watched

        with watched():
            print(load(wanted))
    return 0


def evaluate(words: list[str]) -> int:
    """Evaluates saved nets once more, beside what their directories say."""
    from resrepro.configuration.composition import compose
    from resrepro.configuration.schema import Evaluate, check_data, typed

    asked = [typed(Evaluate, composed) for composed in compose("evaluate", words)]
    for one in asked:
        if one.run is None:
            raise ConfigError("run is not given, as in run=outputs/digits/plain-20-s0")
        if one.data is not None:
            check_data(one.data)

    from pathlib import Path

    together: list[tuple[Evaluate, list[Path]]] = []  # runs that are evaluated alike
    for one in asked:
        alike, path = replace(one, run=None), Path(str(one.run))
        paths = next((paths for other, paths in together if other == alike), None)
        if paths is None:
            together.append((alike, [path]))
        else:
            paths.append(path)
    for alike, paths in together:
        from resrepro.studies.reevaluation import evaluations

        settings = {key: getattr(alike, key) for key in ("device", "precision", "compile")}
        for line in evaluations(paths, settings, alike.data):
            print(line, flush=True)
    return 0


def bench(words: list[str]) -> int:
    """Measures how fast training is."""
    from resrepro.configuration.composition import compose, expand, parse, split_words
    from resrepro.configuration.schema import Bench, typed

    own_keys = ("image_size", "repeats", "seconds", "conventional", "outputs", "hydra")
    own, of_runs = split_words(words, own_keys)
    asked = [typed(Bench, composed) for composed in compose("bench", own)]
    if asked:
        from pathlib import Path

        from resrepro.bench import speed

        runs = expand("bench", [of_runs], parse(own).config_dir)
        first, sizes = asked[0], []
        for one in asked:
            sizes += one.image_size if isinstance(one.image_size, list) else [one.image_size]
            if replace(one, image_size=None) != replace(first, image_size=None):
                raise ConfigError("image_size alone takes several values here; one at a time")
        settings = speed.Settings(sizes, first.repeats, first.seconds, first.conventional)
        folder = Path(first.outputs) / "bench"
        print(speed.table(speed.bench(runs, settings, folder)))
        print(f"\n{folder / 'bench.json'}, and pictures beside it")
    return 0


COMMANDS = {
    "train": Command("train one net, or sweep over many with -m", train),
    "reproduce": Command("run a whole study, then make its figures and table", reproduce),
    "construct": Command("make a deeper net from a trained one by identity layers", construct),
    "evaluate": Command("a saved net's errors once more, beside what was recorded", evaluate),
    "plot": Command("draw the paper's figures from the runs there are", plot),
    "report": Command("make one page of an experiment: verdicts, figures, table 6", report),
    "status": Command("show all runs: state, errors, speed, time left", status),
    "data": Command("fetch, verify and prepare a data set ahead of a sweep", data),
    "bench": Command("measure speed against the machine's limits and a usual pipeline", bench),
}


def usage() -> str:
    """The commands, a line each."""
    lines = [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "resrepro reproduces the degradation study of the ResNet paper (He et al. 2015).",
            "",
            "usage: resrepro COMMAND [key=value ...]",
            "",
            *lines,
            "",
            "resrepro COMMAND --help shows a command's keys and their defaults.",
            "To begin: resrepro reproduce study=digits",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0 done, 2 the arguments are wrong, 1 anything else that failed,
        128 + the signal's number where a signal ended it.
    """
    name, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Of processes that are started: a folder's own fractions.py is not the one they import.
    os.environ["PYTHONSAFEPATH"] = "1"
    if arguments is None:
        _ready_standard_streams()
    with interruption.noted(is_program=arguments is None):
        return _run(name, words)


def _ready_standard_streams() -> None:
    """Leads those that were closed, as for some daemons, to nowhere; all take any letter."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the number that is free: theirs, which processes that are started go by.
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a Latin-1 terminal has no ellipsis


def _run(name: str, words: list[str]) -> int:
    """Runs a command; what goes wrong becomes a line and the exit status."""
    try:
        status = _command(name, words)
        sys.stdout.flush()
        return status
    except (ResreproError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 128 + signal.SIGPIPE
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        line = one_line(error)
        if isinstance(error, MemoryError):
            line = f"not enough memory: {line}"
        print(f"resrepro {name}: {line}", file=sys.stderr)
        return error.status if isinstance(error, ResreproError) else 1
    except Interrupted as stop:
        print(f"resrepro {name}: stopped; the same command goes on from here", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print(f"resrepro {name}: stopped", file=sys.stderr)
        return 130


def _command(name: str, words: list[str]) -> int:
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "-V" or "--version" in (name, *words):
        print(f"resrepro {__version__}")
        return 0
    for word in (name, *words):
        if not word.isprintable() and word != word.encode(errors="replace").decode():
            raise ConfigError(f"{word!r}: is no UTF-8")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no command {name}; {hint}choose one of {', '.join(COMMANDS)}")
    extensions, others = extension.take_extensions(words)
    extension.load_extensions(extensions)
    return COMMANDS[name].run(others)


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed, as behind `| head`; then nothing more is printed."""
    look = select.poll()
    look.register(sys.stdout, 0)  # errors are told without being asked for
    if is_gone := bool(look.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_gone
