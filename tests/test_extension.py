"""A user's own code comes in by --extension alone, and reaches every process that needs it."""

import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import resrepro
from resrepro import extension, networks
from resrepro.configuration.composition import expand
from resrepro.configuration.schema import Model, identity
from resrepro.data import Dataset
from resrepro.errors import ConfigError, ResreproError
from resrepro.runs.run_directory import RunDirectory

Run = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("nothing_stays_registered")

GATED = """
import torch
import torch.nn.functional as F
from torch import nn

import resrepro
from resrepro.networks.blocks import conv3x3, make_shortcut


@resrepro.family("gated")
class Gated(nn.Module):
    def __init__(self, channels, filters, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, filters, stride), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = conv3x3(filters, filters), nn.BatchNorm2d(filters)
        self.shortcut = make_shortcut("A", channels, filters, stride)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + self.gate * y)
"""
BRIGHTNESS = """
import numpy as np
import resrepro


@resrepro.dataset("brightness")
def brightness(data):
    chance = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = chance.integers(0, 100, (60, 1, 8, 8), np.uint8)
    images[labels == 1] += 100
    return resrepro.Dataset(images[:40], labels[:40], images[40:], labels[40:], classes=2)
"""


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    return written(tmp_path / "gated.py", GATED)


def written(file: Path, code: str) -> Path:
    file.write_text(code)
    return file


WORDS = ("model=gated", "depth=8", "data=digits", "recipe=digits", "recipe.iterations=3")


def test_a_family_of_ones_own_trains_and_is_told_apart(resrepro_here: Run, gated: Path) -> None:
    done = resrepro_here("train", "--extension", str(gated), *WORDS, "threads=1")
    assert (done.status, done.stderr) == (0, "")
    run = gated.parent / "outputs/digits/gated-8-s0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"] == {"name": "gated", "width": 16}
    assert list(config["extensions"]) == ["gated.py"]
    assert re.fullmatch("[0-9a-f]{64}", config["extensions"]["gated.py"])
    # The plain twin's parameters, and a gate for each of three blocks.
    assert json.loads((run / "summary.json").read_text())["parameters"] == 75_002 + 3


def test_what_needs_no_extension_is_the_same_run_with_one(gated: Path) -> None:
    (without,) = expand("train", [["data=digits", "model=plain"]], None)
    extension.load_extensions([str(gated)])
    (one,) = expand("train", [["data=digits", "model=plain"]], None)
    assert identity(one) == identity(without)
    assert one.extensions is None


def test_a_changed_extension_is_another_run(
    resrepro_here: Run, gated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resrepro_here("train", "--extension", str(gated), *WORDS).status == 0
    again = resrepro_here("train", "--extension", str(gated), *WORDS)
    assert "is complete already" in again.stdout
    gated.write_text(GATED + "\n# another\n")
    assert (
        "another gated.py, or an older one"
        in resrepro_here("train", "--extension", str(gated), *WORDS).error
    )
    for registered in ("families", "digests", "named"):  # as in another process
        vars(extension._registry)[registered].clear()
    refused = resrepro_here("train", "--extension", str(gated), *WORDS)
    assert refused.status == 2
    assert re.search(r"holds another configuration \(extensions\.gated\.py", refused.error)


def test_the_variable_names_extensions_too(
    resrepro_here: Run, gated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = written(gated.with_name("brightness.py"), BRIGHTNESS)
    monkeypatch.setenv("RESREPRO_EXTENSIONS", f"{gated}{os.pathsep}{other}")
    words = ("model=gated", "depth=8", "data=brightness", "recipe=digits", "recipe.iterations=3")
    done = resrepro_here("train", *words, "experiment=both")
    assert (done.status, done.stderr) == (0, "")
    config = RunDirectory(gated.parent / "outputs/both/gated-8-s0").config()
    assert list(config.extensions or {}) == ["brightness.py", "gated.py"]


def test_a_run_without_its_extension_runs_no_code_and_says_what_it_needs(
    resrepro_in: Run, resrepro_here: Run, gated: Path, tmp_path: Path
) -> None:
    assert resrepro_here("train", f"--extension={gated}", *WORDS).status == 0
    there = tmp_path / "there"
    shutil.copytree(tmp_path / "outputs", there / "outputs")
    shutil.copy(gated, there)  # it lies beside it, and is not named
    (there / "gated.py").write_text("raise SystemExit('it ran')")
    status = resrepro_in(there, "status", "experiment=digits")
    assert status.status == 0
    assert "gated-8-s0" in status.stdout
    deeper = resrepro_in(there, "construct", "run=outputs/digits/gated-8-s0", "depth=14")
    assert deeper.status == 2
    assert "--extension" in deeper.error
    for registered in ("families", "digests", "named"):
        vars(extension._registry)[registered].clear()
    (run,) = resrepro.open(there / "outputs/digits").runs
    with pytest.raises(ConfigError, match=r"the run needs the extension gated\.py: give its file"):
        run.network()


def test_it_reaches_the_processes_of_a_study(resrepro_in: Run, gated: Path) -> None:
    words = ("study=smoke", "model=plain,gated", "depth=8", "recipe.iterations=2", "jobs=2")
    words += ("study.artefacts=[table6]", "device=cpu")
    done = resrepro_in(gated.parent, "reproduce", "--extension", "gated.py", *words)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.count("is complete: ") == 2


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="no joblib")
def test_it_reaches_the_jobs_of_a_launcher(resrepro_in: Run, gated: Path) -> None:
    words = ("-m", "hydra/launcher=joblib", *WORDS, "seed=0,1", "device=cpu", "threads=1")
    done = resrepro_in(gated.parent, "train", "--extension", "gated.py", *words)
    assert done.status == 0, done.stderr
    assert done.stdout.count("gated-8-s") >= 2


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("x = 1", r"it registers nothing; put @resrepro\.family"),
        ("import nothing_like_it", r"ModuleNotFoundError in line 1: No module"),
        ("x = (", r"SyntaxError in line 1"),
        ("import resrepro\n1 / 0", r"ZeroDivisionError in line 2: division by zero"),
        ("import resrepro\nresrepro.family('plain')(print)", r"a family plain already, resrepro's"),
        ("import resrepro\nresrepro.family('My Net')(print)", r"use a lower-case word"),
        ("import resrepro\nresrepro.dataset('cifar10')(print)", r"a data set cifar10 already"),
    ],
)
def test_a_file_that_is_no_extension_is_one_line(
    code: str, line: str, resrepro_here: Run, tmp_path: Path
) -> None:
    written(tmp_path / "wrong.py", code)
    done = resrepro_here("status", "--extension", "wrong.py")
    assert done.status == 2
    assert re.search(rf"^resrepro status: --extension wrong\.py: .*{line}", done.error)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--extension", "absent.py"], "--extension absent.py: there is no such file"),
        (["--extension", "no_such_module"], "there is no such module; a file's name ends in .py"),
        (["--extension"], "--extension: name a file"),
    ],
)
def test_an_extension_that_is_not_there(words: list[str], line: str, resrepro_here: Run) -> None:
    done = resrepro_here("status", *words)
    assert done.status == 2
    assert line in done.error


def test_a_family_registers_from_a_named_file_only() -> None:
    with pytest.raises(ConfigError, match=r"resrepro\.use\(FILE\)"):
        resrepro.family("stray")(torch.nn.Linear)


def test_a_block_begins_as_a_function_of_the_seed(tmp_path: Path) -> None:
    """What it draws when it is made, and what its own `initialise` draws."""
    code = GATED.replace("torch.zeros(1)", "torch.randn(1)") + (
        "    def initialise(self, generator):\n"
        "        nn.init.normal_(self.conv1.weight, generator=generator)\n"
    )
    extension.load_extensions([str(written(tmp_path / "drawn.py", code))])

    def net(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed + 1)  # whatever was drawn before
        network = networks.build(Model("gated"), 8, 10, 1)
        networks.initialise(network, seed)
        return network.state_dict()

    first, again, other = net(0), net(0), net(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    own = "stage2.0.conv1.weight"
    assert not torch.equal(first[own], other[own])
    assert 0.9 < first[own].std() < 1.1
    assert not torch.equal(first["stage1.0.conv1.weight"], first["stage3.0.conv1.weight"][:16, :16])


def test_a_block_says_how_it_becomes_an_identity(tmp_path: Path) -> None:
    extension.load_extensions([str(written(tmp_path / "gated.py", GATED))])
    shallow = networks.build(Model("gated"), 8, 10, 1)
    deep = networks.build(Model("gated"), 14, 10, 1)
    with pytest.raises(ResreproError, match="Gated cannot be constructed"):
        networks.construct(deep, shallow)


def test_a_data_set_of_ones_own(resrepro_here: Run, tmp_path: Path) -> None:
    written(tmp_path / "brightness.py", BRIGHTNESS)
    shown = resrepro_here("data", "--extension", "brightness.py", "data=brightness")
    assert (shown.status, shown.stderr) == (0, "")
    assert "40 training and 20 test images of 8x8 pixels in 1 channel, 2 classes" in shown.stdout


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train_images": np.zeros((4, 8, 8, 1))}, "must be uint8 .*, not float64"),
        ({"test_labels": np.zeros(3, np.int64)}, r"test_labels: must be int64 \(2,\)"),
        ({"train_labels": np.full(4, 2)}, "train_labels: must be there, and from 0 to 1"),
        ({"test_images": np.zeros((2, 1, 9, 9), np.uint8)}, "must be of one size"),
    ],
)
def test_arrays_of_another_kind_are_refused(change: dict[str, Any], line: str) -> None:
    arrays = {
        "train_images": np.zeros((4, 1, 8, 8), np.uint8),
        "train_labels": np.zeros(4, np.int64),
        "test_images": np.zeros((2, 1, 8, 8), np.uint8),
        "test_labels": np.ones(2, np.int64),
    }
    assert Dataset(**arrays, classes=2).digest
    with pytest.raises(ResreproError, match=line):
        Dataset(**(arrays | change), classes=2)
