"""The report: one HTML page that stands by itself."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from resrepro import __version__
from resrepro.configuration import composition
from resrepro.configuration.schema import (
    NOT_IDENTIFYING,
    Config,
    Optimizer,
    Recipe,
    config_hash,
    flatten,
)
from resrepro.errors import ConfigError
from resrepro.files import write_atomically
from resrepro.paper import table
from resrepro.paper.claims import row, seeds_text, signed, tally
from resrepro.paper.curves import Group, Run, recipe_text
from resrepro.paper.figures import DESCRIPTIONS, Drawn
from resrepro.paper.verdicts import Verdict
from resrepro.progress import duration


@dataclass(frozen=True)
class Part:
    """What the page shows of one group of runs.

    Attributes:
        group: the runs.
        figures: that were drawn.
        verdicts: on the paper's claims.
        missing: what could not be shown, as texts.
    """

    group: Group
    figures: list[Drawn]
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
        side_by_side=side_by_side([part.group for part in parts]),
        is_constructed=any(part.group.constructed for part in parts),
    )
    write_atomically(file, page.encode())
    return file


def _shown(part: Part) -> dict[str, Any]:
    group = part.group
    return {
        "title": group.title,
        "caption": group.caption(),
        "missing": part.missing,
        "tally": tally(part.verdicts),
        "answers": [answer(v) for v in part.verdicts if v.id.endswith("-train") and v.primary],
        "verdicts": [
            {"cells": row(v), "verdict": v, "seeds": v.n and seeds_text(v), "bar": bar(v)}
            for v in part.verdicts
        ],
        "schedule": recipe_text(group.config),
        "figures": [_figure(drawn) for drawn in part.figures],
        "table": table.filled(table.rows(group)),
        "notes": table.notes(group),
        "runs": [_run(run) for net in group.nets for run in net.runs]
        + [_run(run) for run in group.constructed],
        "commands": commands(group),
    }


def answer(verdict: Verdict) -> dict[str, str]:
    """What the runs say of a family's training error, in a few words and with the numbers."""
    rises, falls = "get worse with depth", "do not get worse with depth"
    if verdict.above:  # that plain nets do is the claim
        words = {"supported": rises, "contradicted": "get better with depth"}
    else:
        words = {"supported": falls, "contradicted": rises}
    words["no such effect"] = f"{falls} by as much as counts"
    word = verdict.leaning or verdict.word
    said = f"{verdict.family} nets {words[word]}" if word in words else ""
    if verdict.word == "indicated":
        said += ", as far as one seed can tell"
    if not said:
        said = f"whether {verdict.family} nets get worse with depth is not decided"
    numbers = verdict.reason
    if verdict.difference is not None and verdict.interval:
        low, high = map(signed, verdict.interval)
        numbers = (
            f"{signed(verdict.difference)} points of training error from the shallow to the deep "
            f"net, 95% interval {low} to {high}, n = {seeds_text(verdict)}"
        )
    return {"said": said[0].upper() + said[1:], "numbers": numbers}


BAR_WIDTH, BAR_HEIGHT = 320, 18


def bar(verdict: Verdict) -> Markup | None:
    """A verdict's interval as a small drawing, zero and the margin marked; None without one."""
    if verdict.interval is None or verdict.difference is None:
        return None
    marks = [*verdict.interval, verdict.margin, 0.0]
    low, high = min(marks), max(marks)
    room = 0.06 * (high - low) or 1.0

    def x(value: float) -> float:
        return BAR_WIDTH * (value - low + room) / (high - low + 2 * room)

    left, right = map(x, verdict.interval)
    middle = BAR_HEIGHT / 2
    # Numbers alone.
    return Markup(  # noqa: S704
        f'<svg class="bar" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" aria-hidden="true">'
        f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="2" y2="{BAR_HEIGHT - 2}"/>'
        f'<line class="margin" x1="{x(verdict.margin):.1f}" x2="{x(verdict.margin):.1f}" y1="0" '
        f'y2="{BAR_HEIGHT}"/>'
        f'<line class="interval" x1="{left:.1f}" x2="{right:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<circle cx="{x(verdict.difference):.1f}" cy="{middle}" r="4.5"/></svg>'
    )


def side_by_side(groups: list[Group]) -> dict[str, Any] | None:
    """The final errors of every net, a column for each tag; None where there is one."""
    if len(groups) < 2:
        return None
    nets = {net.name: None for group in groups for net in group.nets if net.complete}
    cells = [
        {
            net.name: f"{table.mean(run.final_test_error for run in net.complete)} "
            f"({table.mean(run.clean_train_error for run in net.complete)})"
            for net in group.nets
            if net.complete
        }
        for group in groups
    ]
    return {
        "headers": ["net", *(group.tag or "no tag" for group in groups)],
        "rows": [[name, *(of_tag.get(name, "") for of_tag in cells)] for name in nets],
    }


def _figure(drawn: Drawn) -> dict[str, Any]:
    title = f"Figure {drawn.name.removeprefix('figure')}"
    description = DESCRIPTIONS[drawn.name]
    if drawn.name == "error-vs-depth":
        title, description = "Final error against depth", "A line for each family of nets."
    return {
        "name": drawn.name,
        "title": title,
        "description": description,
        "caption": drawn.caption,
        "panels": [
            inline_svg(svg, f"{drawn.file.stem}-{number}", drawn.alt if number == 0 else None)
            for number, svg in enumerate(drawn.panels)
        ],
    }


def inline_svg(svg: str, prefix: str, alt: str | None) -> Markup:
    """An SVG file as part of a page: no prolog, ids of its own, as wide as there is room.

    Args:
        svg: the file's text.
        prefix: of its ids.
        alt: what it shows; None where another panel's says it for all.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    said = f'role="img" aria-label="{Markup.escape(alt)}"' if alt else 'aria-hidden="true"'
    # The markup is matplotlib's, drawn from numbers and names checked by the configuration.
    return Markup(f"{head} {said}>{rest}")  # noqa: S704


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

    One for all where they are a study's; else a line for each family and its seeds, then one for
    each constructed solution.
    """
    if study := _reproduce(group):
        return [study]
    runs = [run for net in group.nets for run in net.runs]
    made = [_construct(group, run) for run in (*group.constructed, *runs) if run.origin]
    return [*_sweeps(group), *made, f"resrepro report {_word('experiment', group.experiment)}"]


def _reproduce(group: Group) -> str | None:
    """The command that makes just these runs, where there is a study of the experiment's name."""
    with composition.Composer() as composer:
        if group.tag or group.experiment not in composer.options("study"):
            return None
        study = composer.load("reproduce", [f"study={group.experiment}"]).study
    runs = [run.config for net in group.nets for run in net.runs]
    seeds = sorted({run.seed for run in runs})
    seed = f"seed={_listed(seeds)}"
    common = [f"experiment={study.name}", *composition.words_of(study.overrides), seed]
    sweeps = [common + composition.words_of(sweep) for sweep in study.runs]
    try:
        planned = composition.expand("train", sweeps, None)
    except ConfigError:  # it needs a folder of images, say
        return None
    if {(r.name, config_hash(r)) for r in planned} != {(r.name, config_hash(r)) for r in runs}:
        return None
    if group.constructed and "constructed" not in study.artefacts:
        return None
    return f"resrepro reproduce study={study.name}{'' if seeds == [0] else f' {seed}'}"


def _sweeps(group: Group) -> list[str]:
    from_scratch = [run for net in group.nets for run in net.runs if not run.origin]
    seeds: dict[tuple[str, int], list[int]] = {}
    with composition.Composer() as composer:
        options = {
            name: composer.options(name) for name in ("model", "data", "recipe", "optimizer")
        }
        defaults = cache(lambda *words: composer.defaults("train", list(words)))
        for run in from_scratch:
            overrides = " ".join(_overrides(run.config, options, defaults))
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
    config: Config, options: dict[str, list[str]], defaults: Callable[..., dict[str, Any]]
) -> list[str]:
    """What a configuration says that `resrepro train`'s own files do not."""
    said = [f"--extension {shlex.quote(name)}" for name in config.extensions or {}]
    said += [f"model={config.model.name}", f"data={config.data.name}"]
    there_are = []  # an extension's are not, where it was not given
    for group in ("model", "data", "recipe"):
        if (name := getattr(config, group).name) in options[group]:
            there_are.append(_word(group, name))
    if config.recipe.name in options["recipe"]:
        said.append(_word("recipe", config.recipe.name))
    default = defaults(*there_are)
    for key, value in flatten(config.to_dict()).items():
        is_said = key in ("model.name", "data.name", "depth", "seed")
        if is_said or key in NOT_IDENTIFYING - {"data.root", "tag"} or default.get(key) == value:
            continue
        if key == "data.root" and config.data.name != "image_folder":
            continue
        if not key.startswith(("optimizer.", "extensions.")):
            said.append(_word(key, "DIR" if key == "data.root" else value))
    if config.optimizer:
        said += _optimizer(config.optimizer, config.recipe, options["optimizer"], defaults)
    return said


def _optimizer(
    optimizer: Optimizer,
    recipe: Recipe,
    options: list[str],
    defaults: Callable[..., dict[str, Any]],
) -> list[str]:
    """An optimizer by its option's name, or in full where it came from a user's file."""
    wanted = flatten({"optimizer": asdict(optimizer)})
    for option in options:
        default = defaults(f"optimizer={option}")
        if wanted == {
            key: _of_recipe(default.get(key), recipe)
            for key in default
            if key.startswith("optimizer.")
        }:
            return [f"optimizer={option}"]
    keywords = json.dumps(optimizer.keywords).replace(" ", "").replace('"', "")
    return [
        f"optimizer.name={optimizer.name}",
        "'~optimizer.keywords'",
        shlex.quote(f"+optimizer.keywords={keywords}"),
    ]


def _of_recipe(value: Any, recipe: Recipe) -> Any:
    """A value, or what ${recipe.KEY} stands for."""
    match = re.fullmatch(r"\$\{recipe\.(\w+)\}", value) if isinstance(value, str) else None
    return getattr(recipe, match[1]) if match else value


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
