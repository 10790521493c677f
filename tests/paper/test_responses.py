import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import PAPER, config, group, write
from nets import BLOCKS
from torch import Tensor, nn

from resrepro.cli import main
from resrepro.configuration.schema import Config
from resrepro.data import Dataset
from resrepro.data.batches import EVALUATION_BATCH, Batches
from resrepro.networks import CifarNet, build, initialise
from resrepro.networks.blocks import PlainBlock, ResidualBlock
from resrepro.paper.artefacts import measure_missing
from resrepro.paper.curves import collect
from resrepro.paper.responses import deviations, responses
from resrepro.progress import Watcher
from resrepro.runs.run_directory import RunDirectory
from resrepro.training.trainer import train


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_batches() -> Batches:
    """Random images of 9x9 pixels, more than are evaluated at once."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (EVALUATION_BATCH + 40, 2, 9, 9), np.uint8)
    labels = np.zeros(len(images), np.int64)
    data = Dataset(images[:20], labels[:20], images, labels, 3, "")
    return Batches(data, "pixel", PAPER, 0, torch.device("cpu"))


@torch.no_grad()
def naive(network: CifarNet, images: Tensor) -> list[float]:
    """Every layer's output after BN, before ReLU and addition, kept and put together."""
    kept = []

    def layer(x: Tensor, conv: nn.Module, bn: nn.Module) -> Tensor:
        kept.append(bn(conv(x)))
        return kept[-1]

    x = layer(images, network.conv, network.bn).clamp(min=0)
    for stage in (network.stage1, network.stage2, network.stage3):
        for block in stage:
            assert isinstance(block, PlainBlock)
            y = layer(x, block.conv1, block.bn1).clamp(min=0)
            y = layer(y, block.conv2, block.bn2)
            x = (y + block.shortcut(x) if isinstance(block, ResidualBlock) else y).clamp(min=0)
    return [float(np.std(y.double().numpy())) for y in kept]


@pytest.mark.parametrize("option", [None, "A", "B"])
@pytest.mark.parametrize("depth", [8, 20])
def test_deviations_are_those_of_all_outputs_after_bn(depth: int, option: str | None) -> None:
    batches = some_batches()
    network = CifarNet(depth, 3, 2, 4, BLOCKS[option])
    initialise(network, seed=2)
    draws = torch.Generator().manual_seed(1)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            with torch.no_grad():
                m.weight.copy_(0.2 + torch.rand(m.weight.shape, generator=draws))
                m.bias.copy_(torch.randn(m.bias.shape, generator=draws))
                m.momentum = None
    images = torch.cat([x for x, _ in batches.unaugmented("test")])
    network(images)
    network.eval()
    expected = naive(network, images)
    assert len(set(expected)) == len(expected) == depth - 1
    assert deviations(network, batches) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("depth", [8, 20, 56, 110])
def test_shortcuts_have_no_responses(depth: int) -> None:
    network = CifarNet(depth, block=BLOCKS["B"])
    layers = network.responses()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == depth - 1 + 2
    assert len(layers) == len({id(layer) for layer in layers}) == depth - 1
    names = {id(m): name for name, m in network.named_modules()}
    assert not any("shortcut" in names[id(layer)] for layer in layers)
    assert names[id(layers[0])] == "bn"
    assert [names[id(layer)] for layer in layers[-2:]] == [
        f"stage3.{(depth - 2) // 6 - 1}.{bn}" for bn in ("bn1", "bn2")
    ]


def test_measuring_leaves_no_hooks_behind() -> None:
    network = CifarNet(8, 3, 2, 4).eval()
    first = deviations(network, some_batches())
    assert not any(layer._forward_hooks for layer in network.responses())
    assert deviations(network, some_batches()) == first


@pytest.fixture
def trained(quick: Callable[..., Config]) -> list[Config]:
    """A plain net, and a residual one with option B."""
    runs = [quick("model=plain"), quick("model=residual", "model.shortcut=B")]
    for run in runs:
        train(run, Watcher())
    return runs


def from_checkpoint(run: Config) -> list[float]:
    """The responses to the digits' test set, computed here from the files alone."""
    from sklearn.datasets import load_digits

    checkpoint, _ = RunDirectory(run.directory).load_checkpoint(run)
    assert checkpoint
    network = build(run.model, run.depth, 10, 1)
    network.load_state_dict(checkpoint["network"])
    bunch = load_digits()
    test = np.zeros(len(bunch.target), bool)
    test[np.argsort(bunch.target, kind="stable")[4::5]] = True
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8).astype(np.float64)
    images = (pixels[test] - pixels[~test].mean(0)) / 255
    return naive(network.eval(), torch.from_numpy(images[:, None]).float())


def test_they_are_measured_in_the_runs_arithmetic(trained: list[Config]) -> None:
    """And on another device than the run's, where that is not here."""
    run = RunDirectory(trained[0].directory)
    expected = responses(run)
    file = run.path / "config.yaml"
    file.write_text(file.read_text().replace("device: cpu", "device: cuda:7"))
    run = RunDirectory(run.path)
    assert run.config().device == "cuda:7"
    torch.backends.cudnn.allow_tf32 = True
    assert responses(run) == expected
    assert not torch.backends.cudnn.allow_tf32


def test_plot_measures_from_checkpoints_once_and_keeps_the_result(
    trained: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "outputs" / "digits"
    words = ["plot", "figure=figure7", f"outputs={tmp_path}/outputs"]
    assert main(words) == 0
    files = [run.directory / "responses.json" for run in trained]
    for run, file in zip(trained, files, strict=True):
        measured = json.loads(file.read_text())["deviations"]
        assert len(measured) == run.depth - 1
        assert measured == pytest.approx(from_checkpoint(run), rel=1e-3)
    drawn = (folder / "figures/figure7.svg").read_text()
    written = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]

    for checkpoint in folder.rglob("checkpoint*.pt"):
        checkpoint.unlink()
    capsys.readouterr()
    assert main(words) == 0
    assert "missing" not in capsys.readouterr().out
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == written
    assert (folder / "figures/figure7.svg").read_text() == drawn


def test_a_damaged_measurement_is_made_anew(trained: list[Config], tmp_path: Path) -> None:
    words = ["plot", "figure=figure7", f"outputs={tmp_path}/outputs"]
    assert main(words) == 0
    file = trained[0].directory / "responses.json"
    before = file.read_text()
    file.write_text(before.replace("0.", "1.", 1))
    assert main(words) == 0
    assert file.read_text() == before


def test_a_run_of_a_damaged_checkpoint_is_named(trained: list[Config], tmp_path: Path) -> None:
    for file in trained[0].directory.glob("checkpoint*.pt"):
        file.write_bytes(b"damaged")
    (lack,) = measure_missing(collect(f"{tmp_path}/outputs", "digits")[0])
    assert lack.startswith("the responses of plain-8-s0 cannot be measured: ")
    assert "\n" not in lack
    assert (trained[1].directory / "responses.json").exists()


def test_of_a_damaged_last_checkpoint_the_one_before_is_not_measured(
    trained: list[Config], tmp_path: Path
) -> None:
    run = RunDirectory(trained[0].directory)
    checkpoint, _ = run.load_checkpoint(trained[0])
    assert checkpoint
    run.save_checkpoint(checkpoint | {"iteration": 1}, trained[0])
    run.save_checkpoint(checkpoint, trained[0])
    (run.path / "checkpoint.pt").write_bytes(b"damaged")
    (lack,) = measure_missing(collect(f"{tmp_path}/outputs", "digits")[0])
    assert "the last checkpoint is damaged, that of iteration 1 is left" in lack
    assert not (run.path / "responses.json").exists()


def test_a_run_without_checkpoint_is_named_and_others_are_measured(
    trained: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in trained[1].directory.glob("checkpoint*.pt"):
        file.unlink()
    assert main(["plot", "figure=figure7", f"outputs={tmp_path}/outputs"]) == 0
    said = capsys.readouterr().out
    lack = "missing: the responses of residual-8-s0 cannot be measured: it has no checkpoint"
    assert lack in said.splitlines()
    assert (trained[0].directory / "responses.json").exists()
    assert (tmp_path / "outputs/digits/figures/figure7.png").exists()


def test_only_complete_runs_are_measured(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 8), status="running")
    assert list(measure_missing(group(tmp_path))) == []
    write(config(tmp_path, "plain", 14))
    (lack,) = measure_missing(group(tmp_path))
    assert lack == "the responses of plain-14-s0 cannot be measured: it has no checkpoint"
