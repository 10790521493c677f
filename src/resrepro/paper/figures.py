"""Figures 1, 6 and 7 of the paper, from run directories."""

import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from resrepro.errors import ConfigError
from resrepro.paper.curves import Group, Net, Run
from resrepro.paper.published import PUBLISHED

FORMATS = ("png", "svg", "pdf")
PAPER_TOP = 20.0  # percent; the paper's error axis
TOPS = (PAPER_TOP, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0)
DASHED = (0, (4, 2))
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "svg.hashsalt": "resrepro",  # the same runs give the same file
    "svg.fonttype": "none",
    "text.parse_math": False,  # a folder's name may hold dollar signs
}


def figure1(group: Group) -> Figure | None:
    """Figure 1: the shallowest and the deepest plain net; training error left, test error right.

    The paper's are plain-20 and plain-56. None where there are fewer than two plain nets.
    """
    plain = group.select("plain")
    nets = group.select("plain", (20, 56))
    if len(nets) < 2:
        nets = [plain[0], plain[-1]] if len(plain) > 1 else []
    if not nets:
        return None
    figure, axes = _panels(2)
    colour = colours(nets)
    columns = (("train_error", "training error (%)"), ("test_error", "test error (%)"))
    for axis, (column, title) in zip(axes, columns, strict=True):
        for net in nets:
            _draw(axis, net, column, colour[net.depth], lw=1.4)
        axis.set_ylabel(title)
        axis.set_title(title.removesuffix(" (%)"), fontsize=10)
    _mark_constructed(axes[0], group, nets, "clean_train_error")
    _mark_constructed(axes[1], group, nets, "final_test_error")
    _mark_paper(axes[1], group, nets, colour)
    note = "plain nets"
    if _constructed(group, nets):
        note += "; the star's training error is measured without augmentation"
    _finish(figure, axes, nets, group, note)
    for axis, (column, _) in zip(axes, columns, strict=True):
        _label_ends(axis, nets, column, colour)
    return figure


def figure6(group: Group) -> Figure | None:
    """Figure 6: plain nets, residual nets, and the deepest ones; training dashed, test bold."""
    panels = [
        ("plain nets", group.select("plain")),
        ("residual nets", [net for net in group.select("residual") if net.depth <= 110]),
    ]
    if group.select("residual", [1202]):
        panels.append(("very deep residual nets", group.select("residual", [110, 1202])))
    panels = [(title, nets) for title, nets in panels if nets]
    figure, axes = _panels(len(panels))
    every = [net for _, nets in panels for net in nets]
    colour = colours(every)
    for axis, (title, nets) in zip(axes, panels, strict=True):
        for net in nets:
            _draw(axis, net, "train_error", colour[net.depth], ls=DASHED, lw=0.9)
            _draw(axis, net, "test_error", colour[net.depth], lw=1.9)
        _mark_constructed(axis, group, nets, "final_test_error")
        _mark_paper(axis, group, nets, colour)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("error (%)")
    _finish(figure, axes, every, group, "dashed: training error, bold: test error")
    for axis, (_, nets) in zip(axes, panels, strict=True):
        _label_ends(axis, nets, "test_error", colour)
    return figure


def figure7(group: Group) -> Figure | None:
    """Figure 7: deviations of layer responses, in layer order above, in order of size below.

    None where no run's responses have been measured.
    """
    nets = [net for net in group.nets if net.depth <= 110 and _mean_responses(net) is not None]
    depths = {"plain": (20, 56), "residual": (20, 56, 110)}
    nets = [net for net in nets if net.depth in depths[net.model]] or nets
    if not nets:
        return None
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1)
    colour = colours(nets)
    for net in nets:
        deviations = np.asarray(_mean_responses(net))
        layers = np.arange(1, net.depth)
        style = {
            "color": colour[net.depth],
            "ls": DASHED if net.model == "plain" else "-",
            "lw": 1.3,
        }
        above.plot(layers, deviations, label=net.name, **style)
        below.plot(layers, np.sort(deviations)[::-1], **style)
    above.set_xlabel("layer index")
    below.set_xlabel("layer index, sorted by magnitude")
    for axis in (above, below):
        axis.set_ylabel("deviation")
        axis.set_xlim(1)
        axis.set_ylim(0)
    above.legend(ncols=2, framealpha=0.85, edgecolor="none")
    note = "deviation of each 3x3 layer's responses after BN, over the test set; dashed: plain nets"
    _write_below(figure, note, group.caption)
    return figure


FIGURES: dict[str, Callable[[Group], Figure | None]] = {
    "figure1": figure1,
    "figure6": figure6,
    "figure7": figure7,
}
NEEDS = {
    "figure1": "plain nets of two depths",
    "figure6": "a net",
    "figure7": "complete runs with their checkpoints",
}
DESCRIPTIONS = {
    "figure1": "Training error (left) and test error (right) of a shallow and a deep plain net.",
    "figure6": "Training error (dashed) and test error (bold) of plain and of residual nets.",
    "figure7": "Standard deviations of layer responses, in layer order and sorted.",
}


def check_names(names: list[str]) -> None:
    """Refuses what is no figure.

    Raises:
        ConfigError: naming it.
    """
    for name in names:
        if name not in FIGURES:
            raise ConfigError(
                f"figure={name}: there is no such figure; choose {', '.join(FIGURES)}"
            )


def plot_figures(group: Group, folder: Path, names: list[str]) -> tuple[list[Path], list[str]]:
    """Draws figures, each as PNG, SVG and PDF.

    Returns:
        The PNG files, and why others could not be drawn.
    """
    files, missing = [], []
    for name in names:
        stem = f"{name}-{group.tag}" if group.tag else name
        with mpl.rc_context(STYLE):
            figure = FIGURES[name](group)
            if figure is None:
                missing.append(f"{stem} is not drawn: it needs {NEEDS[name]}")
            else:
                files.append(_save(figure, folder, stem))
    return files, missing


def _save(figure: Figure, folder: Path, stem: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    for form in FORMATS:
        figure.savefig(folder / f"{stem}.{form}", dpi=200, metadata=undated.get(form))
    return folder / f"{stem}.png"


def colours(nets: list[Net]) -> dict[int, Any]:
    """One colour a depth, darker with depth: told apart by the colour-blind and in grey print."""
    depths = sorted({net.depth for net in nets})
    shades = np.linspace(0.82, 0.0, len(depths)) if len(depths) > 1 else [0.3]
    return {d: mpl.colormaps["viridis"](shade) for d, shade in zip(depths, shades, strict=True)}


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.2 * count, 3.7), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=True)
    return figure, list(axes[0])


def _draw(axis: Axes, net: Net, column: str, colour: Any, **line: Any) -> None:
    """The mean curve of a net's seeds, and a band of one deviation where there are several."""
    curve, at = net.curve(column), net.iterations()
    mean = curve.mean(axis=0)
    axis.plot(at, mean, color=colour, **line)
    if len(curve) > 1:
        deviation = curve.std(axis=0, ddof=1)
        axis.fill_between(at, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)


def _label_ends(axis: Axes, nets: list[Net], column: str, colour: dict[int, Any]) -> None:
    """Names each net where its curve ends; names that would cover one another move apart."""
    top = axis.get_ylim()[1]
    ends = [min(net.curve(column)[:, -1].mean(), top) for net in nets]
    for net, level in zip(nets, _apart(ends, 0.055 * top, top), strict=True):
        axis.annotate(
            net.name,
            (1.015, level),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=colour[net.depth],
            annotation_clip=False,
        )


def _apart(levels: list[float], gap: float, top: float) -> list[float]:
    """The levels, moved as little as a sweep up and a sweep down need to keep them a gap apart."""
    order = sorted(range(len(levels)), key=lambda i: levels[i])
    placed = list(levels)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    if order:
        placed[order[-1]] = min(placed[order[-1]], top)
    for below, above in reversed(list(pairwise(order))):
        placed[below] = min(placed[below], placed[above] - gap)
    return placed


def _constructed(group: Group, nets: list[Net]) -> list[Run]:
    """The constructed solutions of the depths of some plain nets."""
    depths = {net.depth for net in nets if net.model == "plain"}
    made = [run for run in group.constructed if run.config.model.name == "plain"]
    return [run for run in made if run.config.depth in depths]


def _mark_constructed(axis: Axes, group: Group, nets: list[Net], quantity: str) -> None:
    """One star for the constructed solutions: all depths have the error of the net they extend."""
    if made := _constructed(group, nets):
        level = np.mean([getattr(run, quantity) for run in made])
        last = group.config.recipe.iterations
        axis.plot([last * 0.97], [level], "*", color="black", ms=11, mec="white", mew=0.7, zorder=5)


def _mark_paper(axis: Axes, group: Group, nets: list[Net], colour: dict[int, Any]) -> None:
    """A diamond at the end for the paper's test error, where the data are the paper's."""
    if not group.comparable:
        return
    for net in nets:
        value = (
            PUBLISHED[net.model, net.depth].paper if (net.model, net.depth) in PUBLISHED else None
        )
        if value is not None:
            at = group.config.recipe.iterations
            axis.plot([at], [value], "D", color=colour[net.depth], ms=5, mec="black", clip_on=False)


def _mean_responses(net: Net) -> np.ndarray | None:
    """The responses' deviations (layers,), mean over seeds."""
    measured = [run.responses for run in net.complete if run.responses]
    return np.mean(measured, axis=0) if measured else None


def _finish(figure: Figure, axes: list[Axes], nets: list[Net], group: Group, note: str) -> None:
    """Scales the axes as the paper does, and writes below what is shown."""
    finals = [net.curve(c)[:, -1].max() for net in nets for c in ("train_error", "test_error")]
    top = next((t for t in TOPS if max(finals) * 1.05 <= t), TOPS[-1])
    last = group.config.recipe.iterations
    for axis in axes:
        axis.set_xlim(0, last)
        axis.set_ylim(0, top)
        axis.yaxis.set_tick_params(labelleft=True)
        if last >= 10_000:
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e4:g}"))
            axis.set_xlabel("iter. (1e4)")
        else:
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.set_xlabel("iteration")
    if max(len(net.runs) for net in nets) > 1:
        note += "; bands: mean ± deviation over seeds"
    if made := _constructed(group, nets):
        depths = ", ".join(str(depth) for depth in sorted({run.config.depth for run in made}))
        note += f"; star: plain nets of {depths} layers constructed from plain-{made[0].origin}"
    if group.comparable:
        note += "; diamonds: the paper"
    _write_below(figure, note, group.caption)


def _write_below(figure: Figure, *paragraphs: str) -> None:
    width = int(15 * figure.get_figwidth())
    lines = [line for text in paragraphs for line in textwrap.wrap(text, width)]
    figure.supxlabel("\n".join(lines), fontsize=7.5, color="0.35")
