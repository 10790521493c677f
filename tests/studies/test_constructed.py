import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nets import BLOCKS
from torch import Tensor, nn

from resrepro.cli import main
from resrepro.configuration.composition import expand
from resrepro.configuration.schema import Config, Constructed, from_mapping
from resrepro.data.digits import load_digits
from resrepro.errors import ConfigError, ResreproError
from resrepro.networks import CifarNet, construct, initialise, parameter_count
from resrepro.networks.blocks import PlainBlock
from resrepro.progress import Watcher
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.studies.constructed import constructed_from, constructed_solutions
from resrepro.training.trainer import train

DEPTHS = (20, 32, 44, 56, 110)
OPTIONS = {None: "plain", "A": "residual-A", "B": "residual-B"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Nets this small are slower on several threads, where these wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Training and test images of 8x8 pixels, less the mean."""
    data = load_digits()
    images = [torch.from_numpy(part) / 255 for part in (data.train_images, data.test_images)]
    mean = images[0].mean(0)
    return images[0] - mean, images[1] - mean


@cache
def shallow(depth: int, option: str | None) -> tuple[CifarNet, Tensor]:
    """A net whose BN has seen images and is no identity, and its logits of the test set."""
    network = CifarNet(depth, 10, 1, 16, BLOCKS[option])
    initialise(network, seed=depth)
    draws = torch.Generator().manual_seed(depth)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    train, test = digits()
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=draws))
            norm.bias.copy_(torch.randn(norm.bias.shape, generator=draws) / 4)
            norm.momentum = None  # the mean of all passes
        for start in (0, 256):
            network(train[start : start + 256])
        return network, network.eval()(test)


@pytest.mark.parametrize("option", OPTIONS, ids=OPTIONS.values())
@pytest.mark.parametrize(("depth", "deeper"), list(combinations(DEPTHS, 2)))
def test_a_constructed_net_gives_the_whole_test_set_the_same_classes(
    depth: int, deeper: int, option: str | None
) -> None:
    network, logits = shallow(depth, option)
    made = CifarNet(deeper, 10, 1, 16, BLOCKS[option])
    initialise(made, seed=1)
    construct(made, network)
    with torch.no_grad():
        its = made.eval()(digits()[1])
    assert len(logits.argmax(1).unique()) > 1
    assert torch.equal(its.argmax(1), logits.argmax(1))
    rounding = 1e-5 * logits.abs().max().item()
    torch.testing.assert_close(its, logits, rtol=0, atol=rounding)


@pytest.mark.parametrize("option", OPTIONS, ids=OPTIONS.values())
def test_a_net_of_other_layers_than_the_identity_gives_other_logits(option: str | None) -> None:
    network, logits = shallow(20, option)
    made = CifarNet(32, 10, 1, 16, BLOCKS[option])
    initialise(made, seed=1)
    construct(made, network)
    added = made.stage3[4]
    assert isinstance(added, PlainBlock)
    with torch.no_grad():
        added.bn2.bias += 0.1
        its = made.eval()(digits()[1])
    assert not torch.allclose(its, logits, atol=1e-3)


@pytest.mark.parametrize("option", OPTIONS, ids=OPTIONS.values())
def test_the_shallow_nets_blocks_come_first_in_each_stage(option: str | None) -> None:
    network, _ = shallow(20, option)
    made = CifarNet(32, 10, 1, 16, BLOCKS[option])
    construct(made, network)
    there = made.state_dict()
    assert all(torch.equal(there[key], value) for key, value in network.state_dict().items())
    new = {key.split(".conv1")[0] for key in there if "conv1" in key} - {
        key.split(".conv1")[0] for key in network.state_dict() if "conv1" in key
    }
    assert new == {f"stage{stage}.{block}" for stage in (1, 2, 3) for block in (3, 4)}


@pytest.mark.parametrize("option", ["A", "B"])
def test_an_added_residual_branch_can_learn(option: str) -> None:
    network, _ = shallow(20, option)
    made = CifarNet(32, 10, 1, 16, BLOCKS[option])
    initialise(made, seed=1)
    construct(made, network)
    made.train()(digits()[0][:32]).square().sum().backward()
    added = made.stage2[3]
    assert isinstance(added, PlainBlock)
    assert added.conv1.weight.std() > 0.01
    assert added.bn2.weight.grad is not None
    assert added.bn2.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("deep", "shallower"),
    [
        (CifarNet(20), CifarNet(32)),
        (CifarNet(20), CifarNet(20)),
        (CifarNet(32), CifarNet(20, width=8)),
        (CifarNet(32, block=BLOCKS["A"]), CifarNet(20, block=BLOCKS["B"])),
        (CifarNet(32, classes=100), CifarNet(20)),
    ],
    ids=["shallower", "equal", "width", "shortcut", "classes"],
)
def test_nets_that_differ_in_more_than_depth_are_refused(
    deep: CifarNet, shallower: CifarNet
) -> None:
    with pytest.raises(ValueError, match="must be the shallow one with more blocks"):
        construct(deep, shallower)


ROW = Row(5, 0.4, 0.02, 2.0, 80.0, 2.1, 81.0, 1.0)


# Run directories. The tests that only look share one trained run of each family.


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, quick_words: tuple[str, ...]
) -> dict[str, Config]:
    """A plain and a residual run of 8 layers."""
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    words = [*quick_words, f"outputs={outputs}", "recipe.iterations=12", "model=plain,residual"]
    runs = expand("train", [words], None)
    for run in runs:
        train(run, Watcher())
    return {run.model.name: run for run in runs}


def summary_of(path: Path) -> dict[str, Any]:
    summary = RunDirectory(path).summary()
    assert summary
    return summary


@pytest.mark.parametrize("model", ["plain", "residual"])
def test_construct_makes_a_run_with_the_sources_errors(
    trained: dict[str, Config],
    resrepro: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    model: str,
) -> None:
    source = trained[model].directory
    words = ["construct", f"run={source}", "depth=20", "device=cpu"]
    done = resrepro(*words) if model == "plain" else None
    assert main(words) == 0 if done is None else (done.status, done.stderr) == (0, "")
    printed = capsys.readouterr().out if done is None else done.stdout
    assert f"{model}-20-s0-constructed8 is complete" in printed

    path = source.parent / f"{model}-20-s0-constructed8"
    made, its = summary_of(path), summary_of(source)
    assert made["status"] == "complete"
    for key in ("clean_train_error", "final_test_error"):
        assert made[key] == its[key]
    assert made["final_train_error"] == made["clean_train_error"]
    assert made["parameters"] == parameter_count(
        CifarNet(20, 10, 1, 16, BLOCKS[None if model == "plain" else "A"])
    )
    (row,) = RunDirectory(path).metrics()
    assert (row.iteration, row.test_error) == (0, its["final_test_error"])

    written = from_mapping(yaml.safe_load((path / "config.yaml").read_text()), is_used=False)
    digest = RunDirectory(source).checkpoint_digest()
    assert written.constructed == Constructed(8, digest, str(source))
    assert (written.depth, written.recipe.iterations, written.tag) == (20, 0, "constructed8")
    assert written.directory == path

    before = (path / "checkpoint.pt").read_bytes()
    assert main(words) == 0
    assert "is complete already" in capsys.readouterr().out
    assert (path / "checkpoint.pt").read_bytes() == before


def test_it_can_be_trained_on_from_there(
    trained: dict[str, Config], capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained["plain"].directory
    words = ["construct", f"run={source}", "depth=14", "device=cpu"]
    assert main([*words, "recipe.iterations=3"]) == 0
    path = source.parent / "plain-14-s0-constructed8-trained"
    first, *others = RunDirectory(path).metrics()
    its = summary_of(source)
    assert (first.iteration, first.train_error) == (0, its["clean_train_error"])
    assert first.test_error == its["final_test_error"]
    assert [row.iteration for row in others] == [3]
    assert others[-1].test_loss != first.test_loss
    recipe = RunDirectory(path).config().recipe
    assert (recipe.iterations, recipe.learning_rate) == (3, trained["plain"].recipe.learning_rate)

    assert main(words) == 0
    untrained = source.parent / "plain-14-s0-constructed8"
    assert summary_of(untrained)["clean_train_error"] == its["clean_train_error"]
    assert main([*words, "recipe.iterations=3"]) == 0
    assert "trained is complete already" in capsys.readouterr().out


def test_a_constructed_net_can_be_made_deeper_again(trained: dict[str, Config]) -> None:
    source = trained["residual"].directory
    words = ["device=cpu", "construct"]
    assert main([words[1], f"run={source}", "depth=14", words[0]]) == 0
    middle = source.parent / "residual-14-s0-constructed8"
    assert main([words[1], f"run={middle}", "depth=20", words[0]]) == 0
    made = summary_of(source.parent / "residual-20-s0-constructed8-constructed14")
    assert made["final_test_error"] == summary_of(source)["final_test_error"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("depth=21",), ("depth=21", "6n+2", "20")),
        (("depth=8",), ("depth=8", "deeper", "plain-8-s0")),
        (("depth=2",), ("depth=2",)),
        (("depth=abc",), ("depth", "abc")),
        (("depth=[20]",), ("depth",)),
        (("depth=20.5",), ("depth", "20.5")),
        (("depth=20", "recipe.iterations=-1"), ("recipe.iterations=-1",)),
        (("depth=20", "recipe.iterations=x"), ("recipe.iterations", "x")),
        ((), ("depth is not given",)),
    ],
)
def test_a_depth_that_cannot_be_made_is_refused_in_one_line(
    trained: dict[str, Config],
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    names: tuple[str, ...],
) -> None:
    source = trained["plain"].directory
    before = sorted(source.parent.iterdir())
    assert main(["construct", f"run={source}", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(name in said for name in names), said
    assert sorted(source.parent.iterdir()) == before


def test_a_run_that_is_not_complete_is_refused_in_one_line(
    quick: Callable[..., Config],
    made_up_run: Callable[..., RunDirectory],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed, status in enumerate(("running", "interrupted", "diverged", "failed")):
        run = made_up_run(quick("model=plain", f"seed={seed}"), [ROW], status)
        assert main(["construct", f"run={run.path}", "depth=20"]) == 1
        said = capsys.readouterr().err
        assert (
            said == f"resrepro construct: {run.path} is not complete; train it to its end first\n"
        )


def test_a_folder_that_holds_no_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["construct", f"run={tmp_path}/nothing", "depth=20"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"run={tmp_path}/nothing: there is no run; name one's directory" in said
    assert main(["construct", "depth=20"]) == 2
    assert "run is not given" in capsys.readouterr().err


def test_a_source_without_checkpoint_is_refused(
    quick: Callable[..., Config], made_up_run: Callable[..., RunDirectory]
) -> None:
    run = made_up_run(quick("model=plain"), [ROW])
    with pytest.raises(ResreproError, match=r"checkpoint\.pt is missing"):
        constructed_from(run, 14)


def test_a_source_whose_last_checkpoint_is_damaged_is_refused(
    quick: Callable[..., Config],
) -> None:
    """The one before is that of a net half trained."""
    config = quick("model=plain", "evaluate_every=2")
    train(config, Watcher())
    (config.directory / "checkpoint.pt").write_bytes(b"damaged")
    made = constructed_from(RunDirectory(config.directory), 14)
    with pytest.raises(ResreproError, match="the last checkpoint is damaged"):
        train(made, Watcher())


def test_a_source_trained_anew_is_another_source(
    trained: dict[str, Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained["plain"].directory
    made = constructed_from(RunDirectory(source), 26)
    assert made.constructed
    stale = Constructed(8, "0" * 64, made.constructed.run)
    with pytest.raises(ResreproError, match="has been trained on since"):
        train(Config(**{**vars(made), "constructed": stale, "outputs": str(tmp_path)}), Watcher())


def test_the_rest_of_the_configuration_is_the_sources(trained: dict[str, Config]) -> None:
    source = trained["residual"]
    made = constructed_from(RunDirectory(source.directory), 14)
    assert (made.model, made.data, made.seed) == (source.model, source.data, source.seed)
    assert (made.precision, made.deterministic) == (source.precision, source.deterministic)
    assert made.directory == source.directory.parent / "residual-14-s0-constructed8"


def test_a_tag_stays_before_what_says_it_was_constructed(
    quick: Callable[..., Config], made_up_run: Callable[..., RunDirectory]
) -> None:
    run = made_up_run(quick("model=plain", "tag=warm"), [ROW])
    (run.path / "checkpoint.pt").write_bytes(b"its digest is all that is asked for")
    assert constructed_from(run, 14).name == "plain-14-s0-warm-constructed8"
    assert constructed_from(run, 14, 5).name == "plain-14-s0-warm-constructed8-trained"
    with pytest.raises(ConfigError, match="deeper"):
        constructed_from(run, 8)


def test_a_study_constructs_each_deeper_plain_net_from_the_shallowest_of_its_seed(
    quick: Callable[..., Config], made_up_run: Callable[..., RunDirectory]
) -> None:
    runs = [
        quick(f"model={model}", f"depth={depth}", f"seed={seed}")
        for model in ("plain", "residual")
        for depth in (20, 8, 14)
        for seed in (0, 1)
    ]
    for run in runs:
        status = "interrupted" if (run.depth, run.seed) == (8, 1) else "complete"
        directory = made_up_run(run, [ROW], status)
        (directory.path / "checkpoint.pt").write_bytes(run.name.encode())
    made = constructed_solutions(runs)
    assert sorted(run.name for run in made) == [
        "plain-14-s0-constructed8",
        "plain-20-s0-constructed8",
    ]


def test_it_is_made_where_the_study_is_and_not_where_its_source_was(
    quick: Callable[..., Config], made_up_run: Callable[..., RunDirectory]
) -> None:
    words = ["model=plain", "recipe.iterations=5"]
    shallow, deep = (quick(*words, f"depth={depth}", "threads=2") for depth in (8, 14))
    elsewhere = replace(shallow, device="cuda:3", cuda_graph=True, threads=1)
    source = made_up_run(replace(elsewhere, data=replace(shallow.data, cache="/gone")), [ROW])
    (source.path / "checkpoint.pt").write_bytes(b"its digest is all that is asked for")
    (made,) = constructed_solutions([shallow, deep])
    assert (made.device, made.cuda_graph, made.threads) == ("cpu", None, 2)
    assert made.data == deep.data
    assert constructed_from(source, 14).cuda_graph is None


def test_a_study_whose_checkpoints_are_gone_keeps_what_it_constructed(
    tmp_path: Path, quick_words: tuple[str, ...]
) -> None:
    words = [*quick_words, f"outputs={tmp_path}", "model=plain", "depth=8,14"]
    runs = expand("train", [words], None)
    for run in runs:
        train(run, Watcher())
    (made,) = constructed_solutions(runs)
    train(made, Watcher())
    for file in tmp_path.rglob("checkpoint*.pt"):
        file.unlink()
    assert [run.directory for run in constructed_solutions(runs)] == [made.directory]
    summary = json.loads((made.directory / "summary.json").read_text())
    assert summary["status"] == "complete"
