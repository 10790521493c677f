"""The report: one HTML page that stands by itself."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from resrepro import __version__
from resrepro.configuration import composition
from resrepro.configuration.schema import WHEREABOUTS, Config, flatten
from resrepro.files import write_atomically
from resrepro.paper import table
from resrepro.paper.claims import row, tally
from resrepro.paper.curves import Group, Run
from resrepro.paper.figures import DESCRIPTIONS
from resrepro.paper.verdicts import Verdict
from resrepro.progress import duration


@dataclass(frozen=True)
class Part:
    """What the page shows of one group of runs.

    Attributes:
        group: the runs.
        figures: the PNG files, an SVG beside each.
        verdicts: on the paper's claims.
        missing: what could not be shown, as texts.
    """

    group: Group
    figures: list[Path]
    verdicts: list[Verdict]
    missing: list[str]


def write_report(experiment: str, parts: list[Part], file: Path) -> Path:
    """Writes the page: verdicts, figures, table 6, runs, and how to make it all again."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resrepro.paper", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    page = environment.get_template("report.html.j2").render(
        experiment=experiment,
        version=__version__,
        parts=[_shown(part) for part in parts],
        table_headers=table.HEADERS,
    )
    write_atomically(file, page.encode())
    return file


def _shown(part: Part) -> dict[str, Any]:
    group = part.group
    return {
        "title": group.title,
        "caption": group.caption,
        "missing": part.missing,
        "tally": tally(part.verdicts),
        "verdicts": [{"cells": row(v), "verdict": v} for v in part.verdicts],
        "figures": [_figure(file, group) for file in part.figures],
        "table": table.rows(group),
        "notes": table.notes(group),
        "runs": [_run(run) for net in group.nets for run in net.runs]
        + [_run(run) for run in group.constructed],
        "commands": commands(group),
    }


def _figure(file: Path, group: Group) -> dict[str, Any]:
    name = file.stem.removesuffix(f"-{group.tag}")
    finals = [
        f"{net.name}: training {table.mean(r.final_train_error for r in net.complete)}%, "
        f"test {table.mean(r.final_test_error for r in net.complete)}%"
        for net in group.nets
        if net.complete
    ]
    alt = DESCRIPTIONS[name]
    if name != "figure7" and finals:
        alt += f" Final errors: {'; '.join(finals)}."
    return {
        "title": f"Figure {name.removeprefix('figure')}",
        "description": DESCRIPTIONS[name],
        "svg": inline_svg(file.with_suffix(".svg").read_text(), file.stem, alt),
    }


def inline_svg(svg: str, prefix: str, alt: str) -> Markup:
    """An SVG file as part of a page: no prolog, ids of its own, as wide as there is room."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = Markup.escape(alt)
    # The markup is matplotlib's, drawn from numbers and names checked by the configuration.
    return Markup(f'{head} role="img" aria-label="{label}">{rest}')  # noqa: S704


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.directory.name,
        "status": run.summary["status"],
        "train": f"{run.final_train_error:.2f}",
        "test": f"{run.final_test_error:.2f}",
        "seconds": run.summary.get("seconds"),
        "device": run.summary.get("device", ""),
        "provenance": json.dumps(run.summary, indent=2),
        "config": json.dumps(run.config.to_dict(), indent=2),
    }


def commands(group: Group) -> list[str]:
    """The commands that make the group's runs again, and this page.

    A line for each family and its seeds, then one for each constructed solution.
    """
    runs = [run for net in group.nets for run in net.runs]
    made = [_construct(group, run) for run in (*group.constructed, *runs) if run.origin]
    return [*_sweeps(group), *made, f"resrepro report {_word('experiment', group.experiment)}"]


def _sweeps(group: Group) -> list[str]:
    from_scratch = [run for net in group.nets for run in net.runs if not run.origin]
    seeds: dict[tuple[str, int], list[int]] = {}
    with composition.search_path(None) as loader:
        recipes = loader.config_loader.get_group_options("recipe")
        defaults = cache(lambda *words: composition.defaults(loader, "train", list(words)))
        for run in from_scratch:
            overrides = " ".join(_overrides(run.config, recipes, defaults))
            seeds.setdefault((overrides, run.config.depth), []).append(run.config.seed)
    depths: dict[tuple[str, str], list[int]] = {}
    for (overrides, depth), values in seeds.items():
        depths.setdefault((overrides, _listed(values)), []).append(depth)
    where = _word("experiment", group.experiment)
    return [
        f"resrepro train -m {overrides} depth={_listed(values)} seed={of_seeds} {where}"
        for (overrides, of_seeds), values in depths.items()
    ]


def _listed(values: list[int]) -> str:
    return ",".join(map(str, values))


def _overrides(
    config: Config, recipes: list[str], defaults: Callable[..., dict[str, Any]]
) -> list[str]:
    """What a configuration says that `resrepro train`'s own files do not."""
    words = [f"model={config.model.name}", f"data={config.data.name}"]
    if config.recipe.name in recipes:
        words.append(_word("recipe", config.recipe.name))
    default = defaults(*words)
    said = list(words)
    for key, value in flatten(config.to_dict()).items():
        swept = key in ("depth", "seed")
        if swept or key in WHEREABOUTS - {"data.root", "tag"} or default.get(key) == value:
            continue
        if key == "data.root" and config.data.name != "image_folder":
            continue
        said.append(_word(key, "DIR" if key == "data.root" else value))
    return said


def _construct(group: Group, run: Run) -> str:
    """The command that constructs a run from its source."""
    assert run.config.constructed
    name = Path(run.config.constructed.run).name
    words = [_word("run", f"outputs/{group.experiment}/{name}"), f"depth={run.config.depth}"]
    if run.config.recipe.iterations:
        words.append(f"recipe.iterations={run.config.recipe.iterations}")
    return f"resrepro construct {' '.join(words)}"


def _word(key: str, value: Any) -> str:
    """An override as it is typed: what Hydra would take for a number or a list is in quotes."""
    if isinstance(value, str):
        text = value if re.fullmatch(r"[A-Za-z_][\w./-]*", value) else f"'{value}'"
        if value.lower() in ("null", "true", "false", "nan", "inf"):
            text = f"'{value}'"
    else:
        text = json.dumps(value).replace(" ", "")
    return shlex.quote(f"{key}={text}")
