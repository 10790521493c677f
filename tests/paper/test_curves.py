from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resrepro.configuration.schema import Config
from resrepro.errors import ResreproError
from resrepro.paper.curves import Group, choose_experiment, collect, recipe_text
from resrepro.runs.run_directory import Row, RunDirectory

Make = Callable[..., RunDirectory]
Quick = Callable[..., Config]
Rows = Callable[..., list[Row]]


@pytest.fixture
def groups(tmp_path: Path) -> Callable[[], list[Group]]:
    return lambda: collect(str(tmp_path / "outputs"), "digits")


def names(group: Group) -> list[tuple[str, list[int]]]:
    return [(net.name, [run.config.seed for run in net.runs]) for net in group.nets]


def test_runs_are_nets_with_seeds_plain_first_then_by_depth(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    for model, depth, seed in [
        ("residual", 8, 1),
        ("plain", 110, 0),
        ("plain", 20, 10),
        ("plain", 20, 9),
        ("residual", 8, 0),
    ]:
        made_up_run(quick(f"model={model}", f"depth={depth}", f"seed={seed}"), rows())
    (group,) = groups()
    assert names(group) == [("plain-20", [9, 10]), ("plain-110", [0]), ("ResNet-8", [0, 1])]
    assert group.missing == []
    assert [net.name for net in group.select("plain")] == ["plain-20", "plain-110"]
    assert [net.name for net in group.select("plain", (110, 56))] == ["plain-110"]


def test_curves_are_the_columns_of_metrics_csv(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    first, second = rows(train=1.0, test=4.0), rows(train=7.0, test=9.0)
    made_up_run(quick(), first)
    made_up_run(quick("seed=1"), second)
    (net,) = groups()[0].nets
    assert net.iterations().tolist() == [1, 2, 3, 4, 5]
    for column in ("train_error", "test_error", "train_loss", "test_loss"):
        expected = [[getattr(row, column) for row in run] for run in (first, second)]
        assert np.array_equal(net.curve(column), expected)
    assert [run.final_train_error for run in net.runs] == [1.0, 7.0]
    assert [run.final_test_error for run in net.runs] == [4.0, 9.0]


def test_seeds_are_compared_where_all_have_been_evaluated(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick(), rows(test=4.0))
    made_up_run(quick("seed=1"), rows(test=9.0)[2:])
    made_up_run(quick("seed=2"), rows(test=9.0)[:1], "interrupted")
    (group,) = groups()
    (net,) = group.nets
    assert net.iterations().tolist() == [3, 4, 5]
    assert net.curve("test_error").tolist() == [[8.0, 6.0, 4.0], [13.0, 11.0, 9.0]]
    assert [run.config.seed for run in net.complete] == [0, 1]
    assert [run.config.seed for run in net.running] == [2]
    assert (net.last("test_error"), net.done) == (6.5, 5)


@pytest.mark.parametrize("status", ["interrupted", "failed", "diverged", "running"])
def test_what_is_not_complete_is_shown_and_named(
    status: str, quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick(), rows())
    made_up_run(quick("depth=14"), rows()[:3], status)
    made_up_run(quick("depth=20"), [], status)
    (group,) = groups()
    assert names(group) == [("ResNet-8", [0]), ("ResNet-14", [0])]
    assert group.missing == [
        f"residual-14-s0 has 3 of 5 iterations ({status})",
        "residual-20-s0 has not been evaluated yet",
    ]


def test_a_run_that_failed_before_it_began_hides_no_other(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick(), rows())
    failed = RunDirectory(quick("depth=14").directory)
    failed.open(quick("depth=14"))
    failed.write_summary({"iteration": 0, "status": "failed", "reason": "no data"}, [])
    waiting = RunDirectory(quick("depth=20").directory)
    waiting.open(quick("depth=20"))
    (group,) = groups()
    assert names(group) == [("ResNet-8", [0])]
    assert group.missing == [
        "residual-14-s0 has not been evaluated yet",
        "residual-20-s0 has not been evaluated yet",
    ]


def test_tags_are_kept_apart(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick(), rows())
    made_up_run(quick("tag=slow", "recipe.learning_rate=0.01"), rows())
    made_up_run(quick("tag=slow", "recipe.learning_rate=0.01", "seed=1"), rows())
    made_up_run(quick("tag=fast", "recipe.learning_rate=0.1"), [], "running")
    assert [(group.tag, names(group)) for group in groups()] == [
        (None, [("ResNet-8", [0])]),
        ("slow", [("ResNet-8", [0, 1])]),
    ]


@pytest.mark.parametrize(
    "word",
    [
        "compile=true",
        "precision=bfloat16",
        "deterministic=true",
        "recipe.learning_rate=0.05",
        "recipe.batch_size=64",
        "optimizer.name=RMSprop",
        "data.mean=channel",
        "data.split=validation",
        "model.width=8",
    ],
)
def test_runs_of_other_conditions_are_not_mixed(
    word: str, quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick(), rows())
    made_up_run(quick("depth=14", word), rows())
    key = word.partition("=")[0]
    with pytest.raises(ResreproError, match=rf"cannot stand in one figure.*{key} .*tag") as error:
        groups()
    assert "residual-8-s0" in str(error.value)
    assert "residual-14-s0" in str(error.value)


def test_other_images_under_the_same_name_are_not_mixed(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick(), rows())
    made_up_run(quick("depth=14"), rows(), data_digest="e" * 64)
    with pytest.raises(ResreproError, match="the images"):
        groups()


def test_the_two_kinds_of_shortcut_are_not_mixed(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick("model=plain"), rows())
    made_up_run(quick("depth=14"), rows())
    groups()
    made_up_run(quick("depth=20", "model.shortcut=B"), rows())
    with pytest.raises(ResreproError, match=r"model\.shortcut A and B"):
        groups()


@pytest.mark.parametrize(
    "words", [["seed=1"], ["depth=14"], ["model=plain"], ["evaluate_every=2"], ["threads=2"]]
)
def test_nets_seeds_and_places_may_differ(
    words: list[str], quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick(), rows())
    made_up_run(replace(quick("depth=20", *words), checkpoint_seconds=1.0), rows())
    (group,) = groups()
    assert sum(len(net.runs) for net in group.nets) == 2


def test_a_damaged_run_is_an_error_that_names_the_file(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick(), rows())
    run = made_up_run(quick("depth=14"), rows())
    file = run.path / "metrics.csv"
    file.write_text(file.read_text().replace("5.0", "4.0"))
    with pytest.raises(ResreproError, match=r"residual-14-s0/metrics\.csv is damaged"):
        groups()


def test_nothing_to_show_is_an_error(
    quick: Quick, made_up_run: Make, groups: Callable[[], list[Group]]
) -> None:
    with pytest.raises(ResreproError, match="there are no runs"):
        groups()
    made_up_run(quick(), [], "running")
    with pytest.raises(ResreproError, match=r"no run of digits .* has been evaluated yet"):
        groups()


def test_the_only_experiment_need_not_be_named(
    quick: Quick, made_up_run: Make, rows: Any, tmp_path: Path
) -> None:
    outputs = str(tmp_path / "outputs")
    with pytest.raises(ResreproError, match="there are no runs"):
        choose_experiment(outputs, None)
    made_up_run(quick("experiment=one"), rows())
    assert choose_experiment(outputs, None) == "one"
    made_up_run(quick("experiment=two"), rows())
    with pytest.raises(ResreproError, match="there are one, two in "):
        choose_experiment(outputs, None)
    assert choose_experiment(outputs, "two") == "two"


def test_a_caption_says_data_recipe_seeds_and_final(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick("recipe.iterations=300"), rows(last=300))
    assert groups()[0].caption() == (
        "scikit-learn's digits; the paper's recipe but 300 iterations for 64,000, learning rate "
        "0.02 for 0.1, padding 1 for 4, no mirror images; n = 1 seed a net; final errors"
    )
    made_up_run(quick("recipe.iterations=300", "seed=1"), rows(last=300))
    made_up_run(quick("recipe.iterations=300", "depth=14"), rows(last=300))
    assert "n = 1 to 2 seeds a net" in groups()[0].caption()


def test_a_caption_says_that_nothing_is_complete(
    quick: Quick, made_up_run: Make, rows: Rows, groups: Callable[[], list[Group]]
) -> None:
    made_up_run(quick("recipe.iterations=300"), rows(last=100), "running")
    assert "; no run is complete yet" in groups()[0].caption(finals=False)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["optimizer=adamw"], "AdamW (betas 0.9 and 0.999, weight decay 0.0001)"),
        (
            ["optimizer=nesterov", "recipe.momentum=0.8"],
            "SGD (momentum 0.8, weight decay 0.0001, nesterov)",
        ),
    ],
)
def test_another_optimizers_recipe_is_not_called_the_papers(
    words: list[str], text: str, quick: Quick
) -> None:
    assert recipe_text(quick(*words, "recipe.iterations=300")) == (
        f"{text} in place of the paper's SGD, 300 iterations for 64,000, learning rate 0.02 for "
        "0.1, padding 1 for 4, no mirror images"
    )
    assert "SGD" not in recipe_text(quick("optimizer=sgd"))
