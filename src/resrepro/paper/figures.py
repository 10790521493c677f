"""Figures 1, 6 and 7 of the paper and error against depth, from run directories."""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from resrepro.errors import ConfigError
from resrepro.files import write_atomically
from resrepro.paper.curves import Group, Net, Run, family_title
from resrepro.paper.published import PUBLISHED

FORMATS = ("png", "svg", "pdf")
PAPER_TOP = 20.0  # percent; the paper's error axis
TOPS = (PAPER_TOP, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0)
USUAL_DEPTH = 56  # nets up to here set the axis; a plain net of 110 layers would squeeze all others
MANY = 6  # depths, beyond which a colour alone does not tell neighbours apart
LOG_FROM = 5.0  # between the largest and the smallest error
FLOOR = 0.05  # percent; an error of none has no logarithm, and much less than this says no more
INK, SOFT = "0.15", "0.35"
DASHED = (0, (4, 2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
# Families' colours (Okabe and Ito: told apart by the colour-blind) and, in figure 7, their lines.
FAMILY_COLOURS = {"plain": "#d55e00", "residual": "#0072b2"}
MORE_COLOURS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FAMILY_LINES: dict[str, Any] = {"plain": DASHED, "residual": "-"}
MORE_LINES: tuple[Any, ...] = ((0, (6, 2, 1, 2)), (0, (1, 1.5)), (0, (8, 2, 1, 2, 1, 2)))
IN_WORDS = dict(
    zip(
        (DASHED, "-", *MORE_LINES),
        ("dashed", "solid", "dash-dotted", "dotted", "dash-dot-dotted"),
        strict=True,
    )
)
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

Panel = Callable[[Axes], None]


@dataclass(frozen=True)
class Drawing:
    """A figure before it is drawn: together in a file, panel by panel on the page.

    Attributes:
        panels: each draws on axes of its own.
        nets: that are shown.
        note: what lines and marks mean.
        size: of a panel, in inches.
        is_stacked: whether panels stand one above the other.
        shows_finals: whether its numbers are final errors.
    """

    panels: Sequence[Panel]
    nets: list[Net]
    note: str
    size: tuple[float, float] = (4.4, 3.5)
    is_stacked: bool = False
    shows_finals: bool = False


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn.

    Attributes:
        name: figure6, error-vs-depth, …
        file: the PNG; SVG and PDF lie beside it.
        panels: each panel as SVG by itself, without the caption.
        caption: data, recipe, seeds and what lines mean.
        alt: what can be seen, in words.
    """

    name: str
    file: Path
    panels: list[str]
    caption: str
    alt: str


def error_vs_depth(group: Group) -> Drawing | None:
    """Final error against depth, a line a family, and the constructed solution.

    Plain nets rise, residual nets do not, and a solution was there all the time. None where no
    family has complete nets of two depths.
    """
    nets = [net for net in group.nets if net.complete]
    if all(len({n.depth for n in nets if n.model == m}) < 2 for m in group.families):
        return None
    note = (
        "filled, solid: test error; open, dashed: training error of the finished net on the "
        "training images as they are"
    )
    if any(len(net.complete) > 1 for net in nets):
        note += "; ticks: single seeds"
    if made := _constructed(group, nets):
        note += f"; stars: test error of plain-{made[0].origin} extended by identity layers"
    if min(_final_errors(nets)) < FLOOR:
        note += f"; errors below {FLOOR}% are drawn there"
    return Drawing(
        [partial(_error_vs_depth, group, nets)], nets, note, (6.4, 4.0), shows_finals=True
    )


def figure1(group: Group) -> Drawing | None:
    """Figure 1: the shallowest and the deepest plain net; training error left, test error right.

    The paper's are plain-20 and plain-56. None where there are fewer than two plain nets.
    """
    plain = group.select("plain")
    nets = group.select("plain", (20, 56))
    if len(nets) < 2:
        nets = [plain[0], plain[-1]] if len(plain) > 1 else []
    if not nets:
        return None

    def panel(axis: Axes, column: str, star: str, title: str) -> None:
        colour, mark = colours(nets), marks(nets)
        for net in nets:
            _draw(axis, net, column, colour[net.depth], mark.get(net.depth), lw=1.4)
        _scale(axis, nets, group)
        _mark_constructed(axis, group, nets, star)
        if column == "test_error":
            _mark_paper(axis, group, nets, colour)
        _name_nets(axis, nets, column, colour)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(f"{title} (%)")

    note = "plain nets" + _curve_note(group, nets)
    if _constructed(group, nets):
        note += "; its training error is that on the training images as they are"
    both = (
        ("train_error", "clean_train_error", "training error"),
        ("test_error", "final_test_error", "test error"),
    )
    panels = [partial(panel, column=c, star=s, title=t) for c, s, t in both]
    return Drawing(panels, nets, note)


def figure6(group: Group) -> Drawing | None:
    """Figure 6: a panel for each family, one for very deep nets; training dashed, test bold."""
    shown = [
        (family_title(model), [net for net in group.select(model) if net.depth <= 110])
        for model in group.families
    ]
    for model in group.families:
        if any(net.depth > 110 for net in group.select(model)):
            deep = [net for net in group.select(model) if net.depth >= 110]
            shown.append((f"very deep {family_title(model)}", deep))
    shown = [(title, nets) for title, nets in shown if nets]
    every = [net for net in group.nets if any(net in nets for _, nets in shown)]
    colour, mark = colours(every), marks(every)

    def panel(axis: Axes, title: str, nets: list[Net]) -> None:
        for net in nets:
            _draw(axis, net, "train_error", colour[net.depth], None, ls=DASHED, lw=0.9)
            _draw(axis, net, "test_error", colour[net.depth], mark.get(net.depth), lw=1.9)
        _scale(axis, every, group)
        _mark_constructed(axis, group, nets, "final_test_error")
        _mark_paper(axis, group, nets, colour)
        _name_nets(axis, nets, "test_error", colour)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("error (%)")

    note = "dashed: training error, bold: test error" + _curve_note(group, every)
    panels = [partial(panel, title=title, nets=nets) for title, nets in shown]
    return Drawing(panels, every, note)


def figure7(group: Group) -> Drawing | None:
    """Figure 7: deviations of layer responses, in layer order above, in order of size below.

    On a log axis, as the claim is judged. None where no run's responses have been measured.
    """
    nets = [net for net in group.nets if net.depth <= 110 and _mean_responses(net) is not None]
    usual = [
        net for net in nets if net.depth in ((20, 56) if net.model == "plain" else (20, 56, 110))
    ]
    nets = usual or nets
    if not nets:
        return None

    def panel(axis: Axes, is_sorted: bool) -> None:
        colour, line = colours(nets), _family_lines(group)
        for net in nets:
            deviations = np.asarray(_mean_responses(net))
            if is_sorted:
                deviations = np.sort(deviations)[::-1]
            style: Any = {"color": colour[net.depth], "ls": line[net.model], "lw": 1.3}
            axis.plot(np.arange(1, net.depth), deviations, label=net.name, **style)
        axis.set_yscale("log")
        axis.set_xlim(1)
        _plain_log_ticks(axis)
        axis.set_xlabel("layer index, sorted by magnitude" if is_sorted else "layer index")
        axis.set_ylabel("deviation")
        if not is_sorted:
            axis.legend(ncols=2, framealpha=0.85, edgecolor="none")

    note = "deviation of each 3x3 layer's responses after BN, over the test set"
    if len({net.model for net in nets}) > 1:
        lines = _family_lines(group)
        words = (f"{IN_WORDS[lines[model]]}: {family_title(model)}" for model in group.families)
        note += f"; {', '.join(words)}"
    panels = [partial(panel, is_sorted=is_sorted) for is_sorted in (False, True)]
    return Drawing(panels, nets, note, (6.4, 2.6), is_stacked=True)


FIGURES: dict[str, Callable[[Group], Drawing | None]] = {
    "error-vs-depth": error_vs_depth,
    "figure1": figure1,
    "figure6": figure6,
    "figure7": figure7,
}
NEEDS = {
    "error-vs-depth": "complete nets of two depths",
    "figure1": "plain nets of two depths",
    "figure6": "a net",
    "figure7": "complete runs with their checkpoints",
}
DESCRIPTIONS = {
    "error-vs-depth": "Final error against depth.",
    "figure1": "Training error (left) and test error (right) of a shallow and a deep plain net.",
    "figure6": "Training error (dashed) and test error (bold) against iterations.",
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


def plot_figures(group: Group, folder: Path, names: list[str]) -> tuple[list[Drawn], list[str]]:
    """Draws figures, each as PNG, SVG and PDF.

    Returns:
        What was drawn, and why others could not be.
    """
    done, missing = [], []
    for name in names:
        stem = f"{name}-{group.tag}" if group.tag else name
        drawing = FIGURES[name](group)
        if drawing is None:
            missing.append(f"{stem} is not drawn: it needs {NEEDS[name]}")
            continue
        caption = caption_of(drawing, group)
        with mpl.rc_context(STYLE):
            file = _save(together(drawing, caption), folder, stem)
            panels = [_alone(drawing, panel) for panel in drawing.panels]
        done.append(Drawn(name, file, panels, caption, _alt(name, drawing)))
    return done, missing


def caption_of(drawing: Drawing, group: Group) -> str:
    """What lines and marks mean, then data, recipe and seeds."""
    text = f"{drawing.note}; {group.caption(drawing.nets, drawing.shows_finals)}"
    return f"{text[0].upper()}{text[1:]}."


def together(drawing: Drawing, caption: str) -> Figure:
    """All panels in one figure, the caption below."""
    (width, height), count = drawing.size, len(drawing.panels)
    rows, columns = (count, 1) if drawing.is_stacked else (1, count)
    figure = Figure(figsize=(width * columns, height * rows + 0.35), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, drawing.panels, strict=True):
        panel(axis)
    figure.supxlabel(balanced(caption, int(17.5 * figure.get_figwidth())), fontsize=7.5, color=SOFT)
    return figure


def balanced(text: str, width: int) -> str:
    """A text in as few lines of at most `width` characters as it needs, of about equal lengths."""
    wrap = partial(textwrap.wrap, text, break_on_hyphens=False)
    count = len(wrap(width))
    while width > 1 and len(wrap(width - 1)) == count:
        width -= 1
    return "\n".join(wrap(width))


def _alone(drawing: Drawing, panel: Panel) -> str:
    """A panel by itself, as SVG."""
    figure = Figure(figsize=drawing.size, layout="constrained")
    panel(figure.subplots())
    _lay_out(figure)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()


def _save(figure: Figure, folder: Path, stem: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _lay_out(figure)
    undated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    for form in FORMATS:
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=200, metadata=undated.get(form))
        write_atomically(folder / f"{stem}.{form}", file.getvalue())
    return folder / f"{stem}.png"


def _lay_out(figure: Figure) -> None:
    """Places all parts once, and not anew for each file: that takes most of the time."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _alt(name: str, drawing: Drawing) -> str:
    """A figure in words: its description, and the errors of the nets that it shows."""
    if name == "figure7":
        return f"{DESCRIPTIONS[name]} Of {', '.join(net.name for net in drawing.nets)}."
    finals = [
        f"{net.name}: training {_mean(net, 'final_train_error'):.2f}%, "
        f"test {_mean(net, 'final_test_error'):.2f}%"
        for net in drawing.nets
        if net.complete
    ]
    return " ".join([DESCRIPTIONS[name], *([f"Final: {'; '.join(finals)}."] if finals else [])])


def _mean(net: Net, quantity: str) -> float:
    return float(np.mean([getattr(run, quantity) for run in net.complete]))


def colours(nets: list[Net]) -> dict[int, Any]:
    """One colour a depth, darker with depth: told apart by the colour-blind and in grey print."""
    depths = sorted({net.depth for net in nets})
    shades = np.linspace(0.82, 0.0, len(depths)) if len(depths) > 1 else [0.3]
    return {d: mpl.colormaps["viridis"](shade) for d, shade in zip(depths, shades, strict=True)}


def marks(nets: list[Net]) -> dict[int, str]:
    """A mark a depth, where there are so many depths that colours alone are too close."""
    depths = sorted({net.depth for net in nets})
    return dict(zip(depths, cycle(MARKERS), strict=False)) if len(depths) > MANY else {}


def _family_colours(group: Group) -> dict[str, str]:
    more = cycle(MORE_COLOURS)
    return {model: FAMILY_COLOURS.get(model) or next(more) for model in group.families}


def _family_lines(group: Group) -> dict[str, Any]:
    more = cycle(MORE_LINES)
    return {model: FAMILY_LINES.get(model) or next(more) for model in group.families}


# Error against depth


def _error_vs_depth(group: Group, nets: list[Net], axis: Axes) -> None:
    colour, ends = _family_colours(group), {}
    made = _constructed(group, nets)
    errors = [*_final_errors(nets), *(run.final_test_error for run in made)]
    every = [max(error, FLOOR) for error in errors]
    depths = sorted({net.depth for net in nets})
    wide = max(depths) / min(depths) > 6
    for model in group.families:
        own = [net for net in nets if net.model == model]
        at = [net.depth for net in own]
        for quantity, line, face, side in (
            ("clean_train_error", {"ls": DASHED, "lw": 1.2}, "white", 1),
            ("final_test_error", {"ls": "-", "lw": 2.0}, colour[model], -1),
        ):
            means = [max(_mean(net, quantity), FLOOR) for net in own]
            style: Any = {"marker": "o", "ms": 5.5, "mfc": face, "mec": colour[model], **line}
            axis.plot(at, means, color=colour[model], zorder=3, **style)
            for net in own:
                if len(net.complete) > 1:
                    values = [max(getattr(run, quantity), FLOOR) for run in net.complete]
                    _ticks(axis, net.depth, values, side, wide, colour[model])
            if own and quantity == "final_test_error":
                ends[model] = (at[-1], means[-1])
    if made:
        origin = made[0].origin or 0
        at = sorted({origin, *(run.config.depth for run in made)})
        level = float(np.mean([run.final_test_error for run in made]))
        axis.plot(at, [level] * len(at), ls=":", lw=1.3, color="black", zorder=2)
        axis.plot(
            at[1:],
            [level] * (len(at) - 1),
            "*",
            color="black",
            ms=9,
            mec="white",
            mew=0.6,
            zorder=4,
        )
        ends["constructed"] = (at[-1], level)
        colour = {**colour, "constructed": "black"}
    if wide:
        axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(depths))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axis.set_xlabel("depth (layers)")
    if max(every) / min(every) > LOG_FROM:
        axis.set_yscale("log")
        axis.set_ylim(min(every) / 1.25, min(100, max(every) * 1.25))
        _plain_log_ticks(axis)
        axis.set_ylabel("final error (%), log scale")
    else:
        axis.set_ylim(0, min(100, max(every) * 1.15))
        axis.set_ylabel("final error (%)")
    names = {model: "ResNet" if model == "residual" else model for model in ends}
    _label_ends(
        axis,
        [names[model] for model in ends],
        list(ends.values()),
        [colour[model] for model in ends],
    )


def _final_errors(nets: list[Net]) -> list[float]:
    both = ("clean_train_error", "final_test_error")
    return [getattr(run, key) for net in nets for run in net.complete for key in both]


def _ticks(axis: Axes, depth: int, values: list[float], side: int, wide: bool, colour: Any) -> None:
    """A short mark for each seed, beside its net's mean: test errors left, training right."""
    near, far = (
        (1.02**side, 1.06**side) if wide else (1 + side * 0.6 / depth, 1 + side * 1.7 / depth)
    )
    axis.hlines(values, depth * near, depth * far, color=colour, lw=0.9, alpha=0.8)


def _plain_log_ticks(axis: Axes) -> None:
    """1, 2, 5, 10 … written out, as many as there is room for."""
    low, high = axis.get_ylim()
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    if len(inside) < 3:
        inside = [m * 10.0**p for p in powers for m in range(1, 10) if low <= m * 10.0**p <= high]
    axis.yaxis.set_major_locator(FixedLocator(inside))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


# Curves


def _draw(axis: Axes, net: Net, column: str, colour: Any, mark: str | None, **line: Any) -> None:
    """The mean curve of a net's complete seeds with a band of one deviation, running ones thin."""
    if net.complete:
        curve, at = net.curve(column), net.iterations()
        mean = curve.mean(axis=0)
        every: Any = {"marker": mark, "ms": 4, "markevery": max(1, len(at) // 7)} if mark else {}
        axis.plot(at, mean, color=colour, **line, **every)
        if len(curve) > 1:
            deviation = curve.std(axis=0, ddof=1)
            axis.fill_between(at, mean - deviation, mean + deviation, color=colour, alpha=0.2, lw=0)
    for run in net.running:
        begun = [row.iteration for row in run.rows]
        values = [getattr(row, column) for row in run.rows]
        axis.plot(begun, values, color=colour, **(line | {"lw": 0.7}))


def _scale(axis: Axes, nets: list[Net], group: Group) -> None:
    """Scales the axes as the paper does: a net that is beyond does not squeeze the others."""
    usual = [net for net in nets if net.depth <= USUAL_DEPTH] or nets
    finals = [net.last(c) for net in usual for c in ("train_error", "test_error")]
    top = next((t for t in TOPS if max(finals) * 1.05 <= t), TOPS[-1])
    top = TOPS[-1] if group.config.data.name == "digits" else top
    last = group.config.recipe.iterations
    axis.set_xlim(0, last)
    axis.set_ylim(0, top)
    if top == PAPER_TOP:
        axis.yaxis.set_major_locator(FixedLocator([0, 5, 10, 20]))
    if last >= 10_000:
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e4:g}"))
        axis.set_xlabel("iter. (1e4)")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_xlabel("iteration")


def _name_nets(axis: Axes, nets: list[Net], column: str, colour: dict[int, Any]) -> None:
    """Names each net where its curve ends: on the right, or in the middle while it runs."""
    top, last = axis.get_ylim()[1], axis.get_xlim()[1]
    texts, ends = [], []
    for net in nets:
        level = net.last(column)
        beyond = f": {level:.0f}%, off the axis" if level > top else ""
        done = net.done
        if done < last:
            is_high = level > 0.95 * top  # above it there is the title
            axis.annotate(
                net.name,
                (done, min(level, top)),
                (3, -3 if is_high else 3),
                textcoords="offset points",
                va="top" if is_high else "bottom",
                fontsize=7,
                color=INK,
            )
        else:
            texts.append((f"{net.name}{beyond}", colour[net.depth]))
            ends.append((last, min(level, top)))
    _label_ends(axis, [text for text, _ in texts], ends, [c for _, c in texts])


def _label_ends(
    axis: Axes, texts: list[str], ends: list[tuple[float, float]], colour: list[Any]
) -> None:
    """Writes names beside the ends of lines, in dark ink with a swatch of the line's colour.

    Names that would cover one another move apart, by the least sum of squares.
    """
    to_axes = axis.transScale + axis.transLimits
    levels = [float(to_axes.transform((x, y))[1]) for x, y in ends]
    for text, end, level, placed, shade in zip(
        texts, ends, levels, spaced(levels, 0.062), colour, strict=True
    ):
        start = float(to_axes.transform(end)[0])
        across: Any = {"transform": axis.transAxes, "clip_on": False, "solid_capstyle": "butt"}
        axis.plot(
            [start + 0.012, 1.035, 1.05], [level, placed, placed], color="0.6", lw=0.5, **across
        )
        axis.plot([1.05, 1.085], [placed] * 2, color=shade, lw=3, **across)
        where: Any = {"xycoords": "axes fraction", "annotation_clip": False}
        axis.annotate(text, (1.1, placed), va="center", fontsize=8, color=INK, **where)


def spaced(levels: Sequence[float], gap: float) -> list[float]:
    """Levels from 0 to 1, moved as little as keeping them a gap apart needs (least squares)."""
    count = len(levels)
    if count < 2:
        return list(levels)
    order = np.argsort(levels, kind="stable")
    steps = min(gap, 1 / (count - 1)) * np.arange(count)
    placed = np.empty(count)
    fitted = isotonic_regression(np.asarray(levels)[order] - steps).x
    placed[order] = fitted.clip(0, 1 - steps[-1]) + steps
    return [float(level) for level in placed]


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
        axis.plot([last * 0.95], [level], "*", color="black", ms=11, mec="white", mew=0.7, zorder=6)


def _mark_paper(axis: Axes, group: Group, nets: list[Net], colour: dict[int, Any]) -> None:
    """A diamond at the end for the paper's test error, where the data are the paper's."""
    if not group.comparable:
        return
    for net in nets:
        published = PUBLISHED.get((net.model, net.depth))
        if published and published.paper is not None and published.paper <= axis.get_ylim()[1]:
            at = group.config.recipe.iterations
            style: Any = {"color": colour[net.depth], "ms": 5, "mec": "black", "clip_on": False}
            axis.plot([at], [published.paper], "D", zorder=5, **style)


def _curve_note(group: Group, nets: list[Net]) -> str:
    """What else is to be seen beside curves."""
    note = ""
    if any(len(net.complete) > 1 for net in nets):
        note += "; bands: mean ± deviation over seeds"
    if any(net.running for net in nets):
        note += "; thin: seeds that are still running"
    if made := _constructed(group, nets):
        depths = sorted({run.config.depth for run in made})
        note += f"; star: plain nets of {_listed(depths)} layers made from plain-{made[0].origin}"
    if group.comparable:
        note += "; diamonds: the paper"
    return note


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _mean_responses(net: Net) -> np.ndarray | None:
    """The responses' deviations (layers,), mean over seeds."""
    measured = [run.responses for run in net.complete if run.responses]
    return np.mean(measured, axis=0) if measured else None
