import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError
from resrepro.paper.curves import Group, collect
from resrepro.paper.figures import (
    FIGURES,
    Drawing,
    caption_of,
    check_names,
    colours,
    error_vs_depth,
    figure1,
    figure6,
    figure7,
    plot_figures,
    spaced,
    together,
)
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.studies.constructed import constructed_from

mpl.use("agg")

Make = Callable[..., RunDirectory]
FINAL = {"plain": {8: 4.0, 14: 6.0, 20: 9.0}, "residual": {8: 3.0, 14: 2.5, 20: 2.0}}


@pytest.fixture
def write(
    quick: Callable[..., Config], made_up_run: Make, rows: Callable[..., list[Row]]
) -> Callable[..., RunDirectory]:
    """Writes a run that ends at a training error, and a test error two points above it."""

    def make(model: str, depth: int, error: float, *words: str, **options: Any) -> RunDirectory:
        status, last = options.pop("status", "complete"), options.pop("last", 5)
        config = quick(f"model={model}", f"depth={depth}", f"recipe.iterations={last}", *words)
        made = rows(train=error, test=error + 2, last=last)
        return made_up_run(config, made[: options.pop("rows", 5)], status, **options)

    return make


@pytest.fixture
def group(tmp_path: Path) -> Callable[[], Group]:
    """The one group there is."""

    def make() -> Group:
        (only,) = collect(str(tmp_path / "outputs"), "digits")
        return only

    return make


@pytest.fixture
def study(write: Callable[..., RunDirectory], group: Callable[[], Group]) -> Group:
    """Three depths of both families."""
    for model, finals in FINAL.items():
        for depth, error in finals.items():
            write(model, depth, error)
    return group()


def panels(drawing: Drawing | None) -> list[Axes]:
    assert drawing is not None
    return list(together(drawing, "caption").axes)


def curves(axis: Axes) -> list[Line2D]:
    """The lines of an axis that are curves: not marks, nor what leads to names."""
    several = [line for line in axis.lines if len(np.asarray(line.get_xdata())) > 1]
    return [line for line in several if line.get_clip_on()]


def points(line: Line2D) -> list[tuple[float, float]]:
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def column(run: Path, name: str) -> list[tuple[float, float]]:
    with (run / "metrics.csv").open() as file:
        return [(float(row["iteration"]), float(row[name])) for row in csv.DictReader(file)]


def labels(axis: Axes) -> dict[str, Annotation]:
    """What is written at the curves' ends."""
    return {text.get_text(): text for text in axis.texts if isinstance(text, Annotation)}


def swatch(axis: Axes, name: str) -> Any:
    """The colour beside a name."""
    height = labels(axis)[name].xy[1]
    beside = [line for line in axis.lines if line.get_linewidth() == 3 and not line.get_clip_on()]
    (found,) = [line for line in beside if line.get_ydata()[0] == height]
    return found.get_color()


def text_below(drawing: Drawing | None, group: Group) -> str:
    assert drawing is not None
    return " ".join(together(drawing, caption_of(drawing, group)).get_supxlabel().split())


# Figure 6


def test_figure_6_has_a_panel_for_each_family(study: Group) -> None:
    assert [axis.get_title() for axis in panels(figure6(study))] == ["plain nets", "residual nets"]


def test_figure_6_draws_what_metrics_csv_says(study: Group, tmp_path: Path) -> None:
    for axis, model in zip(panels(figure6(study)), FINAL, strict=True):
        drawn = {}
        for line in curves(axis):
            kind = "train_error" if line.is_dashed() else "test_error"
            drawn[to_rgb(line.get_color()), kind] = points(line)
        assert len(drawn) == 6
        colour = {depth: to_rgb(c) for depth, c in colours(study.nets).items()}
        for depth in FINAL[model]:
            run = tmp_path / f"outputs/digits/{model}-{depth}-s0"
            for kind in ("train_error", "test_error"):
                assert drawn[colour[depth], kind] == column(run, kind)


def test_test_errors_are_bold(study: Group) -> None:
    for axis in panels(figure6(study)):
        widths = {line.is_dashed(): line.get_linewidth() for line in curves(axis)}
        assert widths[False] > 1.5 * widths[True]


def test_a_depth_has_one_colour_in_both_panels_and_every_net_its_name(study: Group) -> None:
    left, right = (labels(axis) for axis in panels(figure6(study)))
    assert list(left) == ["plain-8", "plain-14", "plain-20"]
    assert list(right) == ["ResNet-8", "ResNet-14", "ResNet-20"]
    both = panels(figure6(study))
    for depth in (8, 14, 20):
        shade = swatch(both[0], f"plain-{depth}")
        assert shade == swatch(both[1], f"ResNet-{depth}")
        lines = [line for axis in both for line in curves(axis) if line.get_color() == shade]
        assert len(lines) == 4


def test_names_at_the_ends_do_not_cover_one_another(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    for depth in (8, 14, 20, 26, 32):
        write("plain", depth, 3.0 + depth / 1000)
    (axis,) = panels(figure6(group()))
    heights = [text.xy[1] for text in labels(axis).values()]
    assert heights == sorted(heights)
    assert min(np.diff(heights)) >= 0.06  # of the axis


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_names_move_as_little_as_they_must(levels: list[float]) -> None:
    gap = 0.06
    placed = np.array(spaced(levels, gap))
    order = np.argsort(levels, kind="stable")
    assert (np.diff(placed[order]) >= gap - 1e-9).all()
    assert placed.min() >= -1e-9
    assert placed.max() <= 1 + 1e-9
    if (np.diff(np.array(levels)[order]) >= gap).all():
        np.testing.assert_allclose(placed, levels, atol=1e-9)
    if len(levels) == 2 and gap < min(levels) and max(levels) < 1 - gap:
        assert placed.sum() == pytest.approx(sum(levels))  # both move, and by the same


def test_colours_differ_in_grey_print(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    for depth in (20, 32, 44, 56, 110):
        write("residual", depth, 5.0)
    made = colours(group().nets)
    assert list(made) == [20, 32, 44, 56, 110]
    linear = np.array([to_rgb(c) for c in made.values()]) ** 2.2 @ (0.2126, 0.7152, 0.0722)
    lightness = 116 * np.cbrt(linear) - 16
    assert (np.diff(lightness) < -8).all()  # darker with depth, in steps that can be seen
    assert lightness[0] < 85  # and no curve is lost on white


@pytest.mark.parametrize(
    ("errors", "top"),
    [((4.0, 6.0), 20), ((4.0, 16.9), 20), ((4.0, 17.5), 30), ((2.0, 55.0), 60), ((2.0, 90.0), 100)],
)
def test_the_error_axis_is_the_papers_unless_the_final_errors_are_larger(
    errors: tuple[float, float],
    top: float,
    write: Callable[..., RunDirectory],
    group: Callable[[], Group],
) -> None:
    here = ("data=cifar10", "experiment=digits")
    write("plain", 8, errors[0], *here)
    write("plain", 14, errors[1], *here)
    write("residual", 8, errors[0], *here)
    for draw in (figure6, figure1):
        assert {axis.get_ylim() for axis in panels(draw(group()))} == {(0, top)}


def test_on_digits_the_axis_shows_all_there_can_be(study: Group) -> None:
    assert {axis.get_ylim() for axis in panels(figure6(study))} == {(0, 100)}


def test_a_very_deep_net_does_not_squeeze_the_others(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    for depth, error in ((20, 8.0), (56, 13.0), (110, 61.0)):
        write("plain", depth, error, "data=cifar10", "experiment=digits")
    (axis,) = panels(figure6(group()))
    assert axis.get_ylim() == (0, 20)
    assert list(axis.get_yticks()) == [0, 5, 10, 20]
    assert list(labels(axis)) == ["plain-20", "plain-56", "plain-110: 63%, off the axis"]


@pytest.mark.parametrize(
    ("last", "label", "at", "written"),
    [(64_000, "iter. (1e4)", 32_000, "3.2"), (9_600, "iteration", 4_000, "4000")],
)
def test_iterations_are_in_ten_thousands_where_there_are_many(
    last: int,
    label: str,
    at: int,
    written: str,
    write: Callable[..., RunDirectory],
    group: Callable[[], Group],
) -> None:
    write("plain", 8, 5.0, last=last)
    (axis,) = panels(figure6(group()))
    assert axis.get_xlabel() == label
    assert axis.get_xlim() == (0, last)
    axis.figure.draw_without_rendering()
    assert axis.xaxis.get_major_formatter()(at, 0) == written


def test_several_seeds_are_a_mean_and_a_band_of_their_deviation(
    write: Callable[..., RunDirectory], group: Callable[[], Group], tmp_path: Path
) -> None:
    for seed, error in enumerate((3.0, 4.0, 8.0)):
        write("plain", 8, error, f"seed={seed}")
    write("plain", 14, 5.0)
    figure = figure6(group())
    (axis,) = panels(figure)
    runs = [tmp_path / f"outputs/digits/plain-8-s{seed}" for seed in range(3)]
    tests = np.array([[y for _, y in column(run, "test_error")] for run in runs])
    (mean,) = [
        line
        for line in curves(axis)
        if not line.is_dashed() and line.get_color() == colours(group().nets)[8]
    ]
    np.testing.assert_allclose([y for _, y in points(mean)], tests.mean(0))
    bands = [c for c in axis.collections if isinstance(c, PolyCollection)]
    assert len(bands) == 2  # of training and test error; one seed has none
    low, high = tests.mean(0) - tests.std(0, ddof=1), tests.mean(0) + tests.std(0, ddof=1)
    outline = bands[1].get_paths()[0].vertices
    for x, bottom, top in zip((1, 2, 3, 4, 5), low, high, strict=True):
        heights = outline[outline[:, 0] == x, 1]
        np.testing.assert_allclose((heights.min(), heights.max()), (bottom, top))
    assert "bands: mean ± deviation over seeds" in text_below(figure, group())
    assert "n = 1 to 3 seeds a net" in text_below(figure, group())
    assert "final errors" not in text_below(figure, group())


def test_one_seed_has_no_band(study: Group) -> None:
    figure = figure6(study)
    assert not any(axis.collections for axis in panels(figure))
    assert "bands" not in text_below(figure, study)


def test_one_family_is_one_panel(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    write("residual", 8, 5.0)
    assert [axis.get_title() for axis in panels(figure6(group()))] == ["residual nets"]


def test_the_1202_layer_net_has_a_panel_with_the_110_layer_one(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    for depth in (20, 110, 1202):
        write("residual", depth, 5.0)
    residual, deepest = panels(figure6(group()))
    assert list(labels(residual)) == ["ResNet-20", "ResNet-110"]
    assert list(labels(deepest)) == ["ResNet-110", "ResNet-1202"]


def test_a_partial_run_is_drawn_as_far_as_it_has_come(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    write("plain", 8, 5.0)
    write("plain", 14, 6.0, rows=2, status="interrupted")
    (axis,) = panels(figure6(group()))
    assert sorted(len(points(line)) for line in curves(axis)) == [2, 2, 5, 5]
    assert axis.get_xlim() == (0, 5)
    at = labels(axis)["plain-14"].xy
    assert at[0] == 2  # named where it ends


def test_the_name_of_a_running_net_beyond_the_axis_stays_below_the_title(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    here = ("data=cifar10", "experiment=digits")
    write("plain", 8, 5.0, *here)
    write("plain", 110, 60.0, *here, rows=2, status="interrupted")
    drawing = figure6(group())
    assert drawing is not None
    figure = together(drawing, "caption")
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert labels(axis)["plain-110"].get_window_extent().y1 <= axis.bbox.y1


def test_a_seed_that_has_only_begun_does_not_cut_its_nets_curve(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    for seed in (0, 1):
        write("plain", 8, 5.0, f"seed={seed}")
    write("plain", 8, 40.0, "seed=2", rows=1, status="interrupted")
    figure = figure6(group())
    (axis,) = panels(figure)
    means = [line for line in curves(axis) if line.get_linewidth() > 0.8]
    assert [len(points(line)) for line in means] == [5, 5]
    assert "n = 2 seeds a net" in text_below(figure, group())
    assert "thin: seeds that are still running" in text_below(figure, group())
    assert list(labels(axis)) == ["plain-8"]


def test_seeds_that_were_never_evaluated_together_do_not_stop_the_figure(
    write: Callable[..., RunDirectory],
    group: Callable[[], Group],
    quick: Callable[..., Config],
    made_up_run: Make,
    rows: Callable[..., list[Row]],
) -> None:
    write("plain", 14, 5.0)
    made_up_run(quick("model=plain", "evaluate_every=2"), [rows()[1]], "interrupted")
    made_up_run(quick("model=plain", "evaluate_every=3", "seed=1"), [rows()[2]], "interrupted")
    for draw in (figure1, figure6):
        draw(group())


def marks(axis: Axes, marker: str) -> list[tuple[float, float]]:
    return [point for line in axis.lines if line.get_marker() == marker for point in points(line)]


def test_a_star_is_the_constructed_solution(
    write: Callable[..., RunDirectory], group: Callable[[], Group], made_up_run: Make
) -> None:
    source = write("plain", 8, 5.0)
    (source.path / "checkpoint.pt").write_bytes(b"weights")
    write("plain", 14, 11.0)
    write("residual", 14, 3.0)
    made_up_run(constructed_from(source, 14), [Row(0, 0.0, 0.02, 0.1, 4.5, 0.2, 7.25, 0.5)])
    plain, residual = panels(figure6(group()))
    assert [y for _, y in marks(plain, "*")] == [7.25]
    assert marks(residual, "*") == []
    train, test = panels(figure1(group()))
    assert [y for _, y in marks(train, "*")] == [4.5]
    assert [y for _, y in marks(test, "*")] == [7.25]
    assert "of 14 layers made from plain-8" in text_below(figure6(group()), group())


@pytest.mark.parametrize(
    ("words", "diamonds"),
    [
        (["data=cifar10"], [(5.0, 8.75)]),
        (["data=cifar10", "model.width=8"], []),
        (["data=cifar10", "data.image_size=16"], []),
        (["data=cifar100"], []),
        ([], []),
    ],
)
def test_diamonds_are_the_papers_errors_on_the_papers_images(
    words: list[str],
    diamonds: list[tuple[float, float]],
    write: Callable[..., RunDirectory],
    group: Callable[[], Group],
) -> None:
    write("residual", 20, 5.0, *words, "experiment=digits")
    figure = figure6(group())
    (axis,) = panels(figure)
    assert marks(axis, "D") == diamonds
    assert ("diamonds: the paper" in text_below(figure, group())) == bool(diamonds)


# Figure 1


def test_figure_1_has_training_error_left_and_test_error_right(
    study: Group, tmp_path: Path
) -> None:
    left, right = panels(figure1(study))
    for axis, kind in ((left, "train_error"), (right, "test_error")):
        assert axis.get_title() == kind.replace("_", " ").replace("train ", "training ")
        assert not any(line.is_dashed() for line in curves(axis))
        runs = [tmp_path / f"outputs/digits/plain-{depth}-s0" for depth in (8, 20)]
        assert [points(line) for line in curves(axis)] == [column(run, kind) for run in runs]
        assert list(labels(axis)) == ["plain-8", "plain-20"]


def test_figure_1_prefers_the_papers_depths(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    for depth in (8, 20, 56, 110):
        write("plain", depth, 5.0)
    assert list(labels(panels(figure1(group()))[0])) == ["plain-20", "plain-56"]


def test_figure_1_needs_two_plain_nets(
    write: Callable[..., RunDirectory], group: Callable[[], Group], tmp_path: Path
) -> None:
    write("plain", 20, 5.0)
    write("residual", 8, 5.0)
    assert figure1(group()) is None
    files, missing = plot_figures(group(), tmp_path / "figures", ["figure1", "figure6"])
    assert [drawn.file.name for drawn in files] == ["figure6.png"]
    assert missing == ["figure1 is not drawn: it needs plain nets of two depths"]


# Figure 7


def test_figure_7_has_the_responses_in_order_and_sorted(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    responses = {"plain": [0.5, 0.25, 1.0, 2.0, 0.75, 1.5, 0.1], "residual": [0.3] * 6 + [0.6]}
    for model, deviations in responses.items():
        write(model, 8, 5.0).write_responses(deviations)
    above, below = panels(figure7(group()))
    for axis, wanted in ((above, list), (below, lambda values: sorted(values, reverse=True))):
        plain, residual = curves(axis)
        assert (plain.is_dashed(), residual.is_dashed()) == (True, False)
        for line, model in ((plain, "plain"), (residual, "residual")):
            assert points(line) == list(enumerate(wanted(responses[model]), start=1))
    texts = [text.get_text() for text in above.get_legend().get_texts()]
    assert texts == ["plain-8", "ResNet-8"]


@pytest.mark.parametrize(
    ("models", "lines"),
    [
        (("plain", "residual"), "dashed: plain nets, solid: residual nets"),
        (("plain", "gated"), "dashed: plain nets, dash-dotted: gated nets"),
        (("residual", "gated"), "solid: residual nets, dash-dotted: gated nets"),
    ],
)
def test_figure_7_names_the_lines_it_draws(
    tmp_path: Path, models: tuple[str, str], lines: str
) -> None:
    for model in models:
        extensions = {"gated.py": "0" * 64} if model == "gated" else None
        made_up.write(made_up.config(tmp_path, model, 8, extensions=extensions), response=0.5)
    drawing = figure7(made_up.group(tmp_path))
    assert drawing
    assert drawing.note.endswith(lines)


def test_figure_7_needs_responses(study: Group) -> None:
    assert figure7(study) is None


# Error against depth


def test_error_against_depth_is_a_line_a_family_for_each_error(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    for model, finals in FINAL.items():
        for depth, error in finals.items():
            write(model, depth, error, clean_train_error=error / 2)
    (axis,) = panels(error_vs_depth(group()))
    drawn = {(line.get_color(), line.is_dashed()): points(line) for line in curves(axis)}
    assert len(drawn) == 4
    for model, finals in FINAL.items():
        colour = swatch(axis, "ResNet" if model == "residual" else model)
        clean = [(depth, error / 2) for depth, error in finals.items()]
        tests = [(depth, error + 2) for depth, error in finals.items()]
        np.testing.assert_allclose(drawn[colour, True], clean)
        np.testing.assert_allclose(drawn[colour, False], tests)
    assert axis.get_yscale() == "log"
    assert list(axis.get_xticks()) == [8, 14, 20]
    text = text_below(error_vs_depth(group()), group())
    assert "final errors" in text
    assert "on the training images as they are" in text


def test_seeds_are_ticks_and_the_constructed_solution_is_flat(
    write: Callable[..., RunDirectory], group: Callable[[], Group], made_up_run: Make
) -> None:
    source = write("plain", 8, 5.0)
    (source.path / "checkpoint.pt").write_bytes(b"weights")
    write("plain", 8, 6.0, "seed=1")
    write("plain", 14, 11.0)
    made_up_run(constructed_from(source, 14), [Row(0, 0.0, 0.02, 0.1, 4.5, 0.2, 7.0, 0.5)])
    (axis,) = panels(error_vs_depth(group()))
    seeds = [c for c in axis.collections if isinstance(c, LineCollection)]
    assert sorted(float(s[0, 1]) for c in seeds for s in c.get_segments()) == [5, 6, 7, 8]
    assert marks(axis, "*") == [(14, 7.0)]
    (flat,) = [line for line in curves(axis) if line.get_linestyle() == ":"]
    assert points(flat) == [(8, 7.0), (14, 7.0)]
    assert "plain-8 extended by identity layers" in text_below(error_vs_depth(group()), group())


def test_an_error_of_none_is_drawn_where_there_is_a_logarithm(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    write("plain", 8, 5.0, clean_train_error=0.0)
    write("plain", 14, 6.0)
    (axis,) = panels(error_vs_depth(group()))
    assert min(y for line in curves(axis) for _, y in points(line)) == 0.05
    assert "errors below 0.05% are drawn there" in text_below(error_vs_depth(group()), group())


def test_error_against_depth_needs_two_depths(
    write: Callable[..., RunDirectory], group: Callable[[], Group]
) -> None:
    write("plain", 8, 5.0)
    write("plain", 14, 5.0, status="interrupted")
    assert error_vs_depth(group()) is None


# Files


def test_files_are_written_in_three_formats_and_are_the_same_every_time(
    study: Group, tmp_path: Path
) -> None:
    names = list(FIGURES)[:3]
    for folder in ("one", "two"):
        files, missing = plot_figures(study, tmp_path / folder, names)
        assert [drawn.file.name for drawn in files] == [f"{name}.png" for name in names]
        assert [len(drawn.panels) for drawn in files] == [1, 2, 2]
        assert missing == []
    for name in names:
        for form, magic in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
            content = (tmp_path / "one" / f"{name}.{form}").read_bytes()
            assert content.startswith(magic)
            assert content == (tmp_path / "two" / f"{name}.{form}").read_bytes()
    picture = imread(tmp_path / "one/figure6.png")
    assert picture.shape[1] > 1200
    assert picture[..., :3].std() > 0.05


def test_each_tag_has_figures_of_its_own(
    write: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    write("plain", 8, 5.0)
    write("plain", 8, 15.0, "tag=slow", "recipe.learning_rate=0.01")
    drawn = []
    for group in collect(str(tmp_path / "outputs"), "digits"):
        files, _ = plot_figures(group, tmp_path / "figures", ["figure6"])
        drawn += [figure.file.name for figure in files]
        (axis,) = panels(figure6(group))
        assert len(curves(axis)) == 2
    assert drawn == ["figure6.png", "figure6-slow.png"]


def test_a_name_that_is_no_figure_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"figure=figure2: .*error-vs-depth, figure1, figure6, figure7"
    ):
        check_names(["figure6", "figure2"])
    check_names(["figure1", "figure6", "figure7"])
