import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import resrepro
from resrepro.configuration.schema import Config, Data
from resrepro.data import Dataset, load
from resrepro.data.digits import load_digits
from resrepro.errors import ConfigError, Interrupted
from resrepro.progress import Progress, Watcher
from resrepro.runs.run_directory import RunDirectory
from resrepro.studies import reevaluation
from resrepro.studies.reevaluation import Measured, comparison, evaluate
from resrepro.training.trainer import train

Run = Callable[..., Any]
OWN: dict[str, Any] = {"device": "cpu"}


@pytest.fixture(scope="module")
def trained(
    quick_in: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunDirectory]]:
    """A plain and a residual run of digits, complete."""
    folder = tmp_path_factory.mktemp("evaluated")
    made = []
    for model in ("plain", "residual"):
        config = quick_in(folder, f"model={model}", "recipe.iterations=12")
        train(config, Watcher())
        made.append(RunDirectory(config.directory))
    return made


def as_now(images: Dataset, **changed: Any) -> Dataset:
    """A data set with other arrays, and a digest of its own."""
    return replace(images, digest="", **changed)


def contents(run: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir()}


def test_a_nets_errors_are_the_recorded_ones_to_the_last_digit(trained: list[RunDirectory]) -> None:
    for run in trained:
        summary, last = run.summary(), run.metrics()[-1]
        assert summary is not None
        one = evaluate(run, OWN)
        training, test = one.splits
        assert (training.split, training.images, test.split, test.images) == (
            "training",
            1438,
            "test",
            359,
        )
        assert training.error == summary["clean_train_error"]
        assert test.error == summary["final_test_error"] == last.test_error
        assert test.loss == last.test_loss
        assert (one.is_own_data, one.remarks) == (True, [])


def test_the_command_says_that_they_are_equal_and_writes_nothing(
    trained: list[RunDirectory], resrepro_here: Run
) -> None:
    before = [contents(run) for run in trained]
    done = resrepro_here("evaluate", f"run={trained[0].path},{trained[1].path}", "device=cpu")
    assert (done.status, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "Equal to what is recorded, to the last digit: 6 of 6 numbers."
    for run in trained:
        error = run.metrics()[-1].test_error
        assert f"{run.name}: training " in done.stdout
        assert re.search(rf"test +359 +{error:.4f} +{error:.4f} ", done.stdout)
    assert [contents(run) for run in trained] == before


def test_a_number_that_differs_is_told_in_full(trained: list[RunDirectory]) -> None:
    one = evaluate(trained[0], OWN)
    test = one.splits[1]
    other = replace(test, recorded_error=test.error + 1e-12)
    said = list(comparison([replace(one, splits=[one.splits[0], other])]))
    assert said == [
        f"{one.name}: test error is {test.error!r}, and was recorded as {test.error + 1e-12!r}",
        "2 of 3 numbers are equal to the last digit.",
    ]


def test_a_loss_that_is_not_finite_is_equal_to_itself() -> None:
    split = Measured("test", 10, 90.0, float("nan"), 90.0, float("nan"))
    one = reevaluation.Evaluated("plain-8-s0", [split], is_own_data=True, remarks=[])
    assert list(comparison([one])) == [
        "Equal to what is recorded, to the last digit: 2 of 2 numbers."
    ]


def test_data_that_have_changed_are_warned_of(
    trained: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_digits()
    changed = as_now(
        digits, test_images=digits.test_images[:100], test_labels=digits.test_labels[:100]
    )
    monkeypatch.setattr(reevaluation, "load", lambda _: changed)
    one = evaluate(trained[0], OWN)
    assert one.splits[1].images == 100
    assert not one.is_own_data
    (remark,) = one.remarks
    assert remark.startswith(
        "plain-8-s0: warning: was trained on other data than there is now (SHA"
    )


def test_other_data_lose_the_mean_that_the_net_knows(
    trained: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brighter training images have another mean, which is not this net's."""
    digits = load_digits()
    brighter = np.minimum(digits.train_images.astype(int) + 60, 255).astype(np.uint8)
    other = as_now(digits, train_images=brighter)
    monkeypatch.setattr(reevaluation, "load", lambda data: other if data.root else load(data))
    one = evaluate(trained[0], OWN, Data("digits", root="elsewhere"))
    assert not one.is_own_data
    assert one.remarks == []
    test = one.splits[1]
    assert (test.error, test.loss) == (test.recorded_error, test.recorded_loss)
    assert one.splits[0].error != one.splits[0].recorded_error
    assert "these are others" in next(comparison([one]))


def test_the_same_data_from_another_place_are_its_own(
    trained: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reevaluation, "load", lambda _: load_digits())
    assert evaluate(trained[0], OWN, Data("image_folder", root="moved")).is_own_data


def test_a_part_that_was_held_out_is_not_the_test_set(
    trained: list[RunDirectory], resrepro_here: Run
) -> None:
    words = (f"run={trained[0].path}", "data=digits", "data.split=validation")
    done = resrepro_here("evaluate", *words)
    assert (done.status, done.stderr) == (0, "")
    assert re.search(r"validation +144 ", done.stdout)
    assert done.stdout.endswith("What is recorded is of the run's own data; these are others.\n")


def test_images_of_another_size_are_refused(
    trained: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_digits()
    wide = {
        f"{split}_images": np.repeat(getattr(digits, f"{split}_images"), 2, axis=3)
        for split in ("train", "test")
    }
    larger = as_now(digits, **wide)
    monkeypatch.setattr(reevaluation, "load", lambda data: larger if data.root else load(data))
    with pytest.raises(ConfigError, match=r"10 classes of 1x8x8 .* of 1x8x16; data\.image_size=N"):
        evaluate(trained[0], OWN, Data("digits", root="elsewhere"))


def test_another_arithmetic_is_told(trained: list[RunDirectory]) -> None:
    one = evaluate(trained[0], OWN | {"precision": "bfloat16", "compile": None})
    assert one.remarks == [
        "plain-8-s0: was trained with precision float32, and is evaluated with bfloat16: "
        "digits may differ"
    ]


def test_another_kind_of_cpu_is_told(
    trained: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    (remark,) = evaluate(trained[0], OWN).remarks
    assert "is evaluated with AVX9: digits may differ" in remark


def test_a_run_in_the_middle_is_compared_with_nothing_of_another_iteration(
    quick: Callable[..., Config],
) -> None:
    def stop(now: Progress) -> None:
        if now.iteration == 6:
            raise Interrupted(2)

    config = quick("recipe.iterations=12", "evaluate_every=4", "checkpoint_seconds=1000")
    watcher = Watcher(stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resrepro.training.loop.PROGRESS_SECONDS", -1)
        with pytest.raises(Interrupted):
            train(config, watcher)
    one = evaluate(RunDirectory(config.directory), OWN)
    assert one.remarks == ["residual-8-s0: is the net of iteration 6 of 12"]
    assert [split.pairs() for split in one.splits] == [{}, {}]
    assert list(comparison([one])) == ["Nothing is recorded of these nets at these iterations."]


def test_the_net_is_the_one_that_python_gives(trained: list[RunDirectory]) -> None:
    run = resrepro.open(trained[1].path.parent)["residual-8-s0"]
    network, wrong = run.network(), 0
    for images, labels in run.batches("test"):
        wrong += int((network(images).argmax(1) != labels).sum())
    assert evaluate(trained[1], OWN).splits[1].error == 100 * wrong / 359


# What the words may be


def test_paths_are_paths(trained: list[RunDirectory], tmp_path: Path, resrepro_here: Run) -> None:
    """With commas, brackets, and letters that Hydra's grammar does not know."""
    place = tmp_path / "müller, (ß)=[日本]"
    place.symlink_to(trained[0].path, target_is_directory=True)
    done = resrepro_here("evaluate", f"run={place}", f"run={trained[1].path}")
    assert (done.status, done.stderr) == (0, "")
    assert "6 of 6 numbers" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), 2, r"run is not given, as in run=outputs/digits/plain-20-s0$"),
        (("run=",), 2, r"run=: is empty; name a path, as in run=DIR"),
        (("run=absent",), 2, r"^resrepro evaluate: absent is no run's directory: .*OUTPUTS/"),
        (("run=RUN", "device=foo"), 2, r"device=foo: must be"),
        (("run=RUN", "precision=foo"), 2, r"precision=foo: must be"),
        (("run=RUN", "compile=foo"), 2, r"compile"),
        (("run=RUN", "data=foo"), 2, r"data=foo: .*choose one of cifar10"),
        (("run=RUN", "data=digits", "data.split=foo"), 2, r"data\.split=foo: must be"),
        (("run=EMPTY",), 1, r"EMPTY has no checkpoint to evaluate; train it first$"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: tuple[str, ...],
    status: int,
    message: str,
    trained: list[RunDirectory],
    quick: Callable[..., Config],
    resrepro_here: Run,
    tmp_path: Path,
) -> None:
    empty = replace(quick(), tag="EMPTY")
    RunDirectory(empty.directory).open(empty)
    places = {"run=RUN": f"run={trained[0].path}", "run=EMPTY": f"run={empty.directory}"}
    done = resrepro_here("evaluate", *[places.get(word, word) for word in words])
    assert done.status == status
    assert re.search(message, done.error)
    assert done.stdout == ""


def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_warning(
    trained: list[RunDirectory], tmp_path: Path
) -> None:
    copy = tmp_path / "digits" / trained[0].name
    copy.mkdir(parents=True)
    for name, content in contents(trained[0]).items():
        (copy / name).write_bytes(content)
    newest = copy / "checkpoint.pt"
    (copy / "checkpoint.previous.pt").write_bytes(newest.read_bytes())
    newest.write_bytes(newest.read_bytes()[:-1])
    one = evaluate(RunDirectory(copy), OWN)
    assert "warning: checkpoint.pt: is damaged" in one.remarks[0]
    assert (
        json.loads((copy / "summary.json").read_text())["final_test_error"] == one.splits[1].error
    )
