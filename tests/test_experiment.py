"""Results from Python."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import resrepro
from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError, ResreproError
from resrepro.experiment import Experiment


@pytest.fixture(scope="module")
def trained(quick_words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("experiment")
    words = [*quick_words, "model.width=4", "evaluate_every=1", f"outputs={folder}"]
    for seed in (0, 1):
        resrepro.train([*words, "model=plain", f"seed={seed}"])
    return resrepro.open(folder / "digits")


def test_a_run_is_trained_and_read(trained: Experiment) -> None:
    assert [run.name for run in trained.runs] == ["plain-8-s0", "plain-8-s1"]
    run = trained["plain-8-s1"]
    assert (run.config.depth, run.config.seed) == (8, 1)
    assert run.summary["status"] == "complete"
    assert run.curve["iteration"].tolist() == [1, 2, 3, 4, 5]
    assert run.curve["test_error"][-1] == run.summary["final_test_error"]
    assert "plain-8-s1" in trained
    assert "plain-8-s2" not in trained
    with pytest.raises(KeyError, match="there are plain-8-s0, plain-8-s1"):
        trained["plain-8-s2"]


@torch.no_grad()
def test_the_net_gives_the_error_that_was_written_down(trained: Experiment) -> None:
    run = trained.runs[0]
    network = run.network()
    assert not network.training
    for split, key in (("test", "final_test_error"), ("train", "clean_train_error")):
        wrong = count = 0
        for images, labels in run.batches(split):
            wrong += int((network(images).argmax(1) != labels).sum())
            count += len(labels)
        assert 100 * wrong / count == run.summary[key]


def test_no_other_split_is_taken_for_one(trained: Experiment) -> None:
    with pytest.raises(ConfigError, match="'training' is no split; there are train and test"):
        next(trained.runs[0].batches("training"))


def test_the_net_of_a_lost_checkpoint_is_not_that_of_the_one_before(trained: Experiment) -> None:
    run = trained["plain-8-s1"]
    whole = (run.path / "checkpoint.pt").read_bytes()
    try:
        for damage in (lambda file: file.write_bytes(b"x"), Path.unlink):
            damage(run.path / "checkpoint.pt")
            with pytest.raises(
                ResreproError, match=r"is (damaged|lost), that of iteration [1-4] is left"
            ):
                run.network()
    finally:
        (run.path / "checkpoint.pt").write_bytes(whole)


def test_frames(trained: Experiment) -> None:
    pytest.importorskip("pandas")
    curves, finals = trained.curves(), trained.finals()
    assert len(curves) == 10
    assert list(curves["seed"]) == [0] * 5 + [1] * 5
    assert finals["final_test_error"].tolist() == [
        run.summary["final_test_error"] for run in trained.runs
    ]
    assert finals.loc[finals.seed == 1, "model"].item() == "plain"


def test_without_pandas_it_is_named(trained: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ResreproError, match=r"pip install 'resrepro\[notebook\]'"):
        trained.finals()


def test_what_is_not_there_is_said(tmp_path: Path, quick: Callable[..., Config]) -> None:
    with pytest.raises(ResreproError, match="there are no runs in"):
        resrepro.open(tmp_path / "digits")
    with pytest.raises(ConfigError, match="these are 2 runs"):
        resrepro.train(["data=digits", "seed=0,1"])
    with pytest.raises(ConfigError, match="give a list of overrides"):
        resrepro.train("depth=8")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        resrepro.nothing  # noqa: B018


def test_a_run_without_a_checkpoint_has_no_net(
    quick: Callable[..., Config], made_up_run: Callable[..., Any], rows: Callable[..., Any]
) -> None:
    config = quick()
    made_up_run(config, rows())
    (run,) = resrepro.open(config.directory.parent).runs
    with pytest.raises(ResreproError, match="no checkpoint"):
        run.network()
