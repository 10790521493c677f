"""The command line: `resrepro COMMAND key=value …`.

Each command is a function that imports what it needs, so that help answers at once.
"""

import sys

try:
    import os
    from collections.abc import Callable
    from contextlib import suppress
    from dataclasses import dataclass

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
    from resrepro.configuration import composition

    if composition.parse(words).multirun:
        from resrepro.studies.sweep import train_sweep

        return train_sweep(words)
    composed = composition.compose_one("train", words)
    if composed is not None:
        from resrepro.configuration.schema import from_mapping
        from resrepro.studies.sweep import train_one

        train_one(from_mapping(composed))
    return 0


def construct(words: list[str]) -> int:
    """Makes a deeper net from a trained one by identity layers."""
    from resrepro.configuration import composition

    composed = composition.compose_one("construct", words)
    if composed is None:
        return 0
    for key, example in (("run", "outputs/digits/plain-20-s0"), ("depth", "56")):
        if composed[key] is None:
            raise ConfigError(f"{key} is not given, as in {key}={example}")

    from dataclasses import replace
    from pathlib import Path

    from resrepro.configuration.schema import from_mapping
    from resrepro.runs.run_directory import RunDirectory
    from resrepro.studies.constructed import constructed_from
    from resrepro.studies.sweep import train_one

    source = RunDirectory(Path(composed.run))
    made = constructed_from(source, composed.depth, composed.recipe.iterations)
    train_one(from_mapping(replace(made, device=composed.device).to_dict(), is_used=False))
    return 0


def reproduce(words: list[str]) -> int:
    """Runs a study, then makes its figures and table."""
    from resrepro.configuration import composition
    from resrepro.studies.plan import OWN_KEYS, plan_study

    is_dry, words = DRY_RUN in words, [word for word in words if word != DRY_RUN]
    own, of_runs = composition.split_words(words, OWN_KEYS)
    composed = composition.compose_one("reproduce", own)
    if composed is None:
        return 0
    plan = plan_study(composed, of_runs, composition.parse(own).config_dir)
    if is_dry:
        from resrepro.studies.estimate import forecast

        for line in forecast(plan):
            print(line)
        return 0

    from resrepro.studies.launchers import launcher
    from resrepro.studies.study import run_study

    incomplete, elsewhere = run_study(plan, launcher(own, plan))
    if elsewhere:
        print(
            f"{elsewhere} of {len(plan.runs)} runs go on without this command; given again, it "
            "trains what is missing then, and makes the figures when all are complete"
        )
        return 0

    from resrepro.paper.artefacts import make_artefacts

    for line in make_artefacts(plan.outputs, plan.experiment, plan.artefacts):
        print(line)
    if incomplete:
        raise ResreproError(f"{incomplete} of {len(plan.runs)} runs are not complete")
    return 0


def plot(words: list[str]) -> int:
    """Draws figures from the run directories there are."""
    from resrepro.configuration import composition

    composed = composition.compose_one("plot", words)
    if composed is not None:
        from resrepro.paper import artefacts, curves, figures

        names = [composed.figure] if isinstance(composed.figure, str) else list(composed.figure)
        figures.check_names(names)
        experiment = curves.choose_experiment(composed.outputs, composed.experiment)
        for line in artefacts.make_artefacts(composed.outputs, experiment, names):
            print(line)
    return 0


def report(words: list[str]) -> int:
    """Makes every artefact there can be of an experiment, and the page that shows them."""
    from resrepro.configuration import composition

    composed = composition.compose_one("report", words)
    if composed is not None:
        from resrepro.paper import artefacts, curves

        experiment = curves.choose_experiment(composed.outputs, composed.experiment)
        for line in artefacts.make_artefacts(composed.outputs, experiment, ["report"]):
            print(line)
    return 0


def status(words: list[str]) -> int:
    """Prints a table of the runs there are; with --watch again and again."""
    from resrepro.configuration import composition

    composed = composition.compose_one("status", [word for word in words if word != "--watch"])
    if composed is not None:
        from resrepro.runs.status import status_report, watch

        if "--watch" in words:
            with suppress(KeyboardInterrupt):  # its end
                watch(composed.outputs, composed.experiment)
        else:
            print(status_report(composed.outputs, composed.experiment))
    return 0


def data(words: list[str]) -> int:
    """Fetches, verifies and prepares a data set."""
    from resrepro.configuration import composition

    composed = composition.compose_one("data", words)
    if composed is not None:
        from resrepro.configuration.schema import data_from_mapping
        from resrepro.data import load
        from resrepro.interruption import watched

        with watched():
            print(load(data_from_mapping(composed.data)))
    return 0


def evaluate(words: list[str]) -> int:
    """Evaluates saved nets once more, beside what their directories say."""
    from resrepro.configuration import composition

    paths, others = composition.take_paths(words, "run")
    composed = composition.compose_one("evaluate", others)
    if composed is None:
        return 0
    if not paths:
        raise ConfigError("run is not given, as in run=outputs/digits/plain-20-s0")

    from resrepro.configuration.schema import data_from_mapping
    from resrepro.studies.reevaluation import evaluations

    settings = {key: composed[key] for key in ("device", "precision", "compile")}
    other = data_from_mapping(composed.data) if "data" in composed else None
    for line in evaluations(paths, settings, other):
        print(line, flush=True)
    return 0


def bench(words: list[str]) -> int:
    """Measures how fast training is."""
    from resrepro.configuration import composition

    own_keys = ("image_size", "repeats", "seconds", "conventional", "outputs", "hydra")
    own, of_runs = composition.split_words(words, own_keys)
    composed = composition.compose_one("bench", own)
    if composed is not None:
        from pathlib import Path

        from omegaconf import OmegaConf

        from resrepro.bench import speed

        runs = composition.expand("train", [of_runs], composition.parse(own).config_dir)
        sizes = composed.image_size
        settings = speed.Settings(
            list(sizes) if OmegaConf.is_list(sizes) else [sizes],
            composed.repeats,
            composed.seconds,
            composed.conventional,
        )
        folder = Path(composed.outputs) / "bench"
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
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "-V" or "--version" in words:
        print(f"resrepro {__version__}")
        return 0
    with interruption.noted(is_program=arguments is None):
        return _run(words[0], words[1:])


def _run(name: str, words: list[str]) -> int:
    """Runs a command; what goes wrong becomes a line and the exit status."""
    try:
        if name not in COMMANDS:
            raise ConfigError(f"there is no command {name}; choose one of {', '.join(COMMANDS)}")
        extensions, others = extension.take_extensions(words)
        extension.load_extensions(extensions)
        return COMMANDS[name].run(others)
    except (ResreproError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"resrepro {name}: {one_line(error)}", file=sys.stderr)
        return error.status if isinstance(error, ResreproError) else 1
    except Interrupted as stop:
        print(f"resrepro {name}: stopped; the same command goes on from here", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print(f"resrepro {name}: stopped", file=sys.stderr)
        return 130
