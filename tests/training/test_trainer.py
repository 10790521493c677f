import contextlib
import csv
import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from resrepro import interruption, networks
from resrepro.configuration.composition import expand
from resrepro.configuration.schema import Config
from resrepro.data import load
from resrepro.data.batches import Batches
from resrepro.errors import ConfigError, Diverged, Interrupted, ResreproError
from resrepro.progress import Progress, Watcher
from resrepro.runs.run_directory import RunDirectory
from resrepro.training import devices, loop, optimizers, trainer
from resrepro.training.loop import Training
from resrepro.training.record import Stopwatch
from resrepro.training.step import Step, StepGraph
from resrepro.training.trainer import train

SMALL = ("model.width=4", "recipe.iterations=12", "evaluate_every=5")


# What a run leaves behind, read without the code under test.


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def numbers(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv but for the time they took."""
    return [{key: v for key, v in row.items() if key != "seconds"} for row in rows(run)]


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def checkpoint(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "checkpoint.pt", weights_only=True))


def assert_same_run(here: Path, there: Path) -> None:
    """Metrics, weights, buffers and what the optimizer gathered are the same to the bit."""
    assert numbers(here) == numbers(there)
    a, b = checkpoint(here), checkpoint(there)
    assert a["network"].keys() == b["network"].keys()
    assert all(torch.equal(a["network"][key], b["network"][key]) for key in a["network"])
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    one, other = (gathered(run["optimizer"]["state"]) for run in (a, b))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    for key in ("status", "final_test_error", "best_test_error", "clean_train_error"):
        assert summary(here)[key] == summary(there)[key]


def gathered(state: dict[int, dict[str, Tensor]]) -> dict[tuple[int, str], Tensor]:
    """What an optimizer holds of each parameter, by the parameter's number and a name."""
    assert state
    return {(i, key): value for i, of_one in state.items() for key, value in of_one.items()}


def quietly(config: Config) -> dict[str, Any]:
    return train(config, Watcher())


@contextmanager
def interrupted_at_look(look: int) -> Iterator[None]:
    """A signal is found at the given look for one, counted from 1."""
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == look:
            raise Interrupted(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interruption, "check", check)
        yield


def test_ctrl_c_between_an_update_and_its_count_saves_no_half_iteration(
    unbroken: Config, quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python or a notebook, where nothing watches for the signal."""
    config = quick(*SMALL)
    counted, count = 0, Step.count

    def interrupted(step: Step, *args: Tensor) -> None:
        nonlocal counted
        counted += 1
        if counted == 8:
            raise KeyboardInterrupt
        count(step, *args)

    monkeypatch.setattr(Step, "count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quietly(config)
    assert summary(config.directory)["status"] == "interrupted"
    assert checkpoint(config.directory)["iteration"] == 5
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


def test_ctrl_c_before_the_first_checkpoint_leaves_a_run_that_can_begin_again(
    unbroken: Config, quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(*SMALL)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quietly(config)
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


def interrupt(config: Config, look: int) -> None:
    with interrupted_at_look(look), pytest.raises(Interrupted):
        quietly(config)


@pytest.fixture(scope="module")
def unbroken(quick_in: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that was never interrupted; the tests leave it as it is."""
    config = quick_in(tmp_path_factory.mktemp("unbroken"), *SMALL)
    quietly(config)
    return config


# The numbers


@pytest.mark.parametrize("model", ["plain", "residual"])
def test_training_is_the_papers_recipe(model: str, quick: Callable[..., Config]) -> None:
    config = quick(
        *SMALL, f"model={model}", "recipe.drops=[0.5]", "recipe.weight_decay=0.01", "seed=2"
    )
    quietly(config)

    batches = Batches(load(config.data), "pixel", config.recipe, 2, torch.device("cpu"))
    network = networks.build(config.model, 8, classes=10, channels=1)
    networks.initialise(network, 2)
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    losses, wrong = [], []
    for iteration in range(12):
        x, labels = batches(iteration)
        logits = network(x)
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, parameters)
        rate = 0.02 if iteration < 6 else 0.002
        with torch.no_grad():
            for p, v, g in zip(parameters, velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(rate * v)
        losses.append(loss.item())
        wrong.append((logits.argmax(1) != labels).sum().item())

    saved = checkpoint(config.directory)["network"]
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(saved[name], parameter.detach(), rtol=1e-3, atol=1e-4)
    written = rows(config.directory)
    assert [row["iteration"] for row in written] == [5, 10, 12]
    for row, part in zip(written, (slice(0, 5), slice(5, 10), slice(10, 12)), strict=True):
        assert row["train_loss"] == pytest.approx(np.mean(losses[part]), rel=1e-3)
        assert row["train_error"] == pytest.approx(np.mean(wrong[part]) / 1.28, abs=0.2)
        assert row["epoch"] == pytest.approx(row["iteration"] * 128 / 1438)
    assert [row["learning_rate"] for row in written] == [0.02, 0.002, 0.002]


def error_of(config: Config, split: str) -> tuple[float, float]:
    """Loss and error (percent) of a run's checkpoint on plain images, a second way."""
    data = load(config.data)
    network = networks.build(config.model, config.depth, 10, 1)
    network.load_state_dict(checkpoint(config.directory)["network"])
    mean = data.train_images.astype(np.float64).mean(0)
    images, labels = (
        (data.train_images, data.train_labels)
        if split == "train"
        else (data.test_images, data.test_labels)
    )
    x = torch.from_numpy(((images - mean) / 255).astype(np.float32))
    with torch.no_grad():
        logits = network.eval()(x)
    target = torch.from_numpy(labels)
    error = 100 * (logits.argmax(1) != target).double().mean().item()
    return F.cross_entropy(logits, target).item(), error


def test_the_summary_agrees_with_the_metrics_and_the_weights(
    quick: Callable[..., Config],
) -> None:
    config = quick("recipe.iterations=40", "evaluate_every=4")
    returned = quietly(config)
    last, written = rows(config.directory)[-1], summary(config.directory)
    assert returned.items() <= written.items()
    assert (written["status"], written["iteration"], written["iterations"]) == ("complete", 40, 40)
    assert written["final_train_error"] == last["train_error"]
    assert written["final_test_error"] == last["test_error"]
    best = min(row["test_error"] for row in rows(config.directory))
    assert written["best_test_error"] == best
    test_loss, test_error = error_of(config, "test")
    assert last["test_error"] == pytest.approx(test_error, abs=0.01)
    assert last["test_loss"] == pytest.approx(test_loss, rel=1e-4)
    assert written["clean_train_error"] == pytest.approx(error_of(config, "train")[1], abs=0.01)
    assert written["clean_train_error"] != last["train_error"]
    assert written["parameters"] == 75_002
    assert written["images_per_second"] > 0


def test_the_summary_says_where_the_numbers_come_from(unbroken: Config) -> None:
    written = summary(unbroken.directory)
    assert written["versions"]["torch"] == torch.__version__
    assert (written["device"], written["threads"], written["precision"]) == ("cpu", 1, "float32")
    assert (written["compiled"], written["deterministic"]) == (False, False)
    assert written["data_digest"] == load(unbroken.data).digest
    assert {"config_hash", "git_revision", "host"} <= written.keys()


def test_a_peak_is_told_of_the_first_run_of_a_process_only(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.PeakMemory, "_process_is_used", False)
    peaks = [quietly(quick(*SMALL, f"seed={seed}"))["peak_memory_bytes"] for seed in range(2)]
    assert peaks[0] > 10**7
    assert peaks[1] is None


def test_a_gpus_peak_is_the_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = {torch.device("cuda", 1): 5}
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", peak.pop)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: peak.get(device, 0))
    assert devices.PeakMemory(torch.device("cuda", 1)).bytes() == 0


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_process_computes_as_the_configuration_says(
    precision: str, allowed: bool, deterministic: bool, quick: Callable[..., Config]
) -> None:
    config = quick()
    try:
        devices.set_up(replace(config, precision=precision, deterministic=deterministic), 1)
        cudnn = torch.backends.cudnn
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert cudnn.allow_tf32 is allowed
        assert (cudnn.deterministic, cudnn.benchmark) == (deterministic, not deterministic)
        assert torch.are_deterministic_algorithms_enabled() is deterministic
    finally:
        devices.set_up(config, 1)


def other_images(folder: Path) -> Path:
    """Two folders A and B of images: the same names, other pixels."""
    for name, seed in (("A", 1), ("B", 2)):
        chance = np.random.default_rng(seed)
        for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
            (folder / name / place).mkdir(parents=True)
            for i in range(3):
                pixels = chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / place / f"{i}.png")
    return folder


def test_a_complete_run_is_not_returned_for_data_it_never_saw(
    quick_words: tuple[str, ...], tmp_path: Path
) -> None:
    images = other_images(tmp_path)
    shutil.copytree(images / "A", images / "copy")
    words = [*quick_words, *SMALL, "data=image_folder", f"data.cache={tmp_path}/cache"]
    one, other, copy = (
        expand("train", [[*words, f"data.root={images / name}", f"outputs={tmp_path}"]], None)[0]
        for name in ("A", "B", "copy")
    )
    quietly(one)
    before = (one.directory / "summary.json").read_bytes()
    with pytest.raises(ResreproError, match=r"was trained on other data.*tag=WORD") as refused:
        quietly(other)
    assert "\n" not in str(refused.value)
    assert (one.directory / "summary.json").read_bytes() == before
    assert quietly(copy)["status"] == "complete"  # the same data in another place
    assert quietly(one)["status"] == "complete"


def test_training_lowers_the_errors(quick: Callable[..., Config]) -> None:
    config = quick("recipe.iterations=100")
    done = quietly(config)
    assert rows(config.directory)[0]["test_error"] > 70
    assert done["final_test_error"] < 20
    assert done["final_train_error"] < 20


def test_two_runs_of_one_configuration_are_equal(
    unbroken: Config, quick: Callable[..., Config]
) -> None:
    torch.manual_seed(123)
    np.random.default_rng(123).random(5)
    again = quick(*SMALL, "experiment=again")
    quietly(again)
    assert_same_run(unbroken.directory, again.directory)


def test_seed_0_is_a_seed_like_any_other(unbroken: Config, quick: Callable[..., Config]) -> None:
    for seed in (1, 2):
        other = quick(*SMALL, f"seed={seed}")
        quietly(other)
        here, there = numbers(unbroken.directory), numbers(other.directory)
        assert all(a["train_loss"] != b["train_loss"] for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize(
    ("words", "every", "last"),
    [
        (("recipe.iterations=84",), 5, 84),  # 40 times a run would take longer than training
        (("recipe.iterations=84", "recipe.batch_size=512"), 2, 84),  # 40 times
        (("recipe.iterations=300",), 7, 300),
        (("recipe.iterations=20000",), 12, 20_000),  # an epoch: 1438 images in batches of 128
        (("recipe.iterations=20000", "recipe.batch_size=719"), 2, 20_000),
        (("recipe.iterations=300", "evaluate_every=100"), 100, 300),
    ],
)
def test_how_often_a_run_is_evaluated(
    words: tuple[str, ...], every: int, last: int, quick: Callable[..., Config]
) -> None:
    config = quick("model.width=1", *words)
    RunDirectory(config.directory).open(config)
    training = Training(config, RunDirectory(config.directory), Watcher(), load(config.data))
    due = []
    for training.state.iteration in (*range(1, 4 * every + 1), last - 1, last):
        if training.evaluation_is_due():
            due.append(training.state.iteration)
    assert due[:4] == [every, 2 * every, 3 * every, 4 * every]
    assert due[-1] == last


def test_evaluations_fall_where_the_rule_says(quick: Callable[..., Config]) -> None:
    config = quick("model.width=1", "recipe.iterations=57")
    quietly(config)
    at = [row["iteration"] for row in rows(config.directory)]
    assert at == [*range(5, 57, 5), 57]


def test_how_long_a_run_will_take_is_told_as_it_begins(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(
        loop, "forecast", lambda *run: lambda i, _: f"{run} {i}" if i == 2 else None
    )
    lines: list[str] = []
    train(quick(), Watcher(line=lines.append))
    assert lines.count("('residual-8-s0', 5) 2") == 1


def test_what_was_made_of_the_data_is_told_once(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick()
    lines: list[str] = []
    monkeypatch.setattr(trainer, "load", lambda data: replace(load(data), note="3 are odd"))
    with interrupted_at_look(3), pytest.raises(Interrupted):
        train(config, Watcher(line=lines.append))
    train(config, Watcher(line=lines.append))
    assert lines.count("note: 3 are odd") == 1


def test_bfloat16_trains_on_the_cpu(unbroken: Config, quick: Callable[..., Config]) -> None:
    config = quick(*SMALL, "precision=bfloat16", "recipe.iterations=60")
    done = quietly(config)
    assert done["precision"] == "bfloat16"
    assert done["final_train_error"] < rows(config.directory)[0]["train_error"] - 10
    first, exact = (
        rows(config.directory)[0]["train_loss"],
        rows(unbroken.directory)[0]["train_loss"],
    )
    assert first != exact
    assert first == pytest.approx(exact, rel=0.05)
    assert {t.dtype for t in checkpoint(config.directory)["network"].values()} == {
        torch.float32,
        torch.int64,
    }


def test_tf32_is_refused_on_a_cpu_and_blocks_nothing(quick: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"precision=tf32.*precision=float32"):
        quietly(quick("precision=tf32"))
    assert quietly(quick("precision=float32"))["status"] == "complete"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused_and_blocks_nothing(
    quick: Callable[..., Config],
) -> None:
    with pytest.raises(ConfigError, match=r"device=cuda: .*device=cpu"):
        quietly(quick("device=cuda"))
    assert quietly(quick())["status"] == "complete"


# Devices and compilation


@pytest.fixture
def on_meta(quick: Callable[..., Config]) -> Step:
    config = quick("recipe.batch_size=16")
    return Step(config, load(config.data), torch.device("meta"))


def test_a_step_leaves_no_tensor_behind_on_the_cpu(on_meta: Step) -> None:
    for iteration in range(2):
        on_meta(iteration, 0.1)
    parameters = list(on_meta.network.parameters())
    tensors = [*on_meta.network.state_dict().values(), on_meta.sums, on_meta.batches.mean]
    tensors += [p.grad for p in parameters if p.grad is not None]
    tensors += [state["momentum_buffer"] for state in on_meta.optimizer.state.values()]
    assert len(tensors) == len(on_meta.network.state_dict()) + 2 + 2 * len(parameters)
    tensors += [*on_meta.batches(1), *on_meta.batches.train, *on_meta.batches.test]
    assert {t.device.type for t in tensors} == {"meta"}


def test_a_step_waits_for_no_value(on_meta: Step) -> None:
    # On meta there are no values: .item(), .tolist() or an `if` on a tensor would fail.
    on_meta(0, 0.1)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        on_meta.read()


def test_an_evaluation_fails_only_where_its_result_is_needed(on_meta: Step) -> None:
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        on_meta.errors("test")


def test_a_tensor_on_another_device_would_show(on_meta: Step) -> None:
    on_meta.batches.mean = torch.zeros(1, 8, 8)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        on_meta(0, 0.1)


def test_a_compiled_net_is_saved_as_the_plain_one(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compiled(net, backend="eager"))
    config = quick(*SMALL, "compile=true")
    done = quietly(config)
    assert done["compiled"] is True
    keys = checkpoint(config.directory)["network"].keys()
    assert keys == networks.build(config.model, 8, 10, 1).state_dict().keys()


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
def test_compile_trains(quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config = quick("compile=true", "recipe.iterations=1")
    done = quietly(config)
    assert (done["status"], done["compiled"]) == ("complete", True)
    keys = checkpoint(config.directory)["network"].keys()
    assert keys == networks.build(config.model, 8, 10, 1).state_dict().keys()
    with pytest.raises(ConfigError, match="compile True, here False"):
        quietly(quick("compile=false", "recipe.iterations=1"))


# Going on


@pytest.mark.parametrize("look", [1, 4, 6, 7, 13, 16, 17])
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(
    look: int, unbroken: Config, quick: Callable[..., Config]
) -> None:
    config = quick(*SMALL)
    interrupt(config, look)
    state = summary(config.directory)
    assert state["status"] == "interrupted"
    assert state["iteration"] < 12 or look > 13
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


def test_a_run_stopped_again_and_again_is_still_the_same(
    unbroken: Config, quick: Callable[..., Config]
) -> None:
    config = quick(*SMALL)
    stops = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SHARE", 1.0)
        for look in (3, 2, 3, 4, 2):
            interrupt(config, look)
            stops += 1
    assert 0 < summary(config.directory)["iteration"] < 12
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


@pytest.mark.parametrize("at", [5, 10, 12])
def test_a_watcher_may_stop_a_run(at: int, unbroken: Config, quick: Callable[..., Config]) -> None:
    def stop(now: Progress) -> None:
        if now.iteration == at:
            raise Interrupted(signal.SIGINT)

    config = quick(*SMALL)
    with pytest.raises(Interrupted) as stopped:
        train(config, Watcher(progress=stop))
    assert stopped.value.status == 130
    assert summary(config.directory)["status"] == "interrupted"
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


def test_the_running_training_error_survives_a_stop(
    unbroken: Config, quick: Callable[..., Config]
) -> None:
    config = quick(*SMALL)
    interrupt(config, look=4)  # after three of the five iterations before the first row
    assert summary(config.directory)["iteration"] == 3
    assert rows(config.directory) == []
    quietly(config)
    first, expected = numbers(config.directory)[0], numbers(unbroken.directory)[0]
    assert first["iteration"] == 5
    assert (first["train_error"], first["train_loss"]) == (
        expected["train_error"],
        expected["train_loss"],
    )


# The optimizer

NADAM = """
name: NAdam
keywords:
  betas: [0.8, 0.99]
  weight_decay: ${recipe.weight_decay}
"""


@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adamw", "nadam"])
def test_whatever_the_optimizer_a_stopped_run_is_still_the_same(
    optimizer: str, quick_words: tuple[str, ...], tmp_path: Path
) -> None:
    own = tmp_path / "conf/optimizer"
    own.mkdir(parents=True)
    (own / "nadam.yaml").write_text(NADAM)
    words = [*quick_words, *SMALL, f"optimizer={optimizer}", f"outputs={tmp_path}"]
    config, unbroken = (
        expand("train", [[*words, f"experiment={name}"]], str(own.parent))[0]
        for name in ("stopped", "unbroken")
    )
    quietly(unbroken)
    interrupt(config, look=5)  # before the rate drops, and between two rows
    interrupt(config, look=6)
    assert 0 < summary(config.directory)["iteration"] < 12
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


def test_the_optimizer_follows_the_schedule(quick: Callable[..., Config]) -> None:
    """AdamW as its authors write it (Loshchilov & Hutter 2019, algorithm 2)."""
    words = ("optimizer=adamw", "recipe.learning_rate=0.01", "recipe.weight_decay=0.1")
    config = quick("model.width=1", "recipe.iterations=2", "recipe.drops=[0.5]", *words)
    quietly(config)
    batches = Batches(load(config.data), "pixel", config.recipe, 0, torch.device("cpu"))
    network = networks.build(config.model, 8, classes=10, channels=1)
    networks.initialise(network, 0)
    parameters = list(network.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    for t, rate in ((1, 0.01), (2, 0.001)):
        x, labels = batches(t - 1)
        gradients = torch.autograd.grad(F.cross_entropy(network(x), labels), parameters)
        with torch.no_grad():
            for p, m, v, g in zip(parameters, first, second, gradients, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                direction = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
                p.sub_(rate * (direction + 0.1 * p))
    saved = checkpoint(config.directory)["network"]
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(saved[name], parameter.detach(), rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_when_there_was_sgd_alone_is_gone_on_with(
    unbroken: Config, quick: Callable[..., Config]
) -> None:
    config = quick(*SMALL)
    interrupt(config, look=9)
    state = checkpoint(config.directory)
    buffers = state.pop("optimizer")["state"]
    state["momentum"] = [buffers[i]["momentum_buffer"] for i in range(len(buffers))]
    RunDirectory(config.directory).save_checkpoint(state | {"format": 1}, config)
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


def test_an_optimizer_keeps_its_keywords_and_the_weights_order_of_memory(
    quick: Callable[..., Config],
) -> None:
    """Whatever device the checkpoint is of: how kernels are launched is this device's to say."""
    config = quick(*SMALL, "optimizer=adamw")
    step = Step(config, load(config.data), torch.device("cpu"))
    step(0, 0.02)
    state = step.optimizer.state_dict()
    for moments in state["state"].values():
        moments["exp_avg"] = moments["exp_avg"].contiguous()
    state["param_groups"][0] |= {"fused": True, "lr": torch.tensor(5.0), "weight_decay": 7.0}
    other = Step(config, load(config.data), torch.device("cpu"))
    optimizers.load_state(other.optimizer, {"optimizer": state, "learning_rate": 0.002})
    (group,) = other.optimizer.param_groups
    assert (group["fused"], group["lr"], group["weight_decay"]) == (False, 0.002, 1e-4)
    for parameter, moments in other.optimizer.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()
        assert moments["step"] == 1


WARM = (
    "model.width=4",
    "recipe.iterations=80",
    "evaluate_every=5",
    "recipe.warm_up.depth=8",
    "recipe.drops=[0.75]",
)


@pytest.fixture(scope="module")
def warmed_up(quick_in: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose warm-up ended and that was never interrupted."""
    words = (*WARM, "recipe.warm_up.until_error=88.5")
    config = quick_in(tmp_path_factory.mktemp("warmed"), *words)
    quietly(config)
    return config


def test_the_warm_up_ends_by_the_training_error_and_the_rate_comes_back(
    warmed_up: Config,
) -> None:
    written = rows(warmed_up.directory)
    errors = [row["train_error"] for row in written]
    assert np.mean(errors[0:5]) > 88.5 > np.mean(errors[5:10])  # windows of 25 iterations
    assert "warm-up ends at iteration 50" in (warmed_up.directory / "train.log").read_text()
    # Each row has the rate of the iterations before it: 50 warmed up, 60 was a drop.
    expected = {5: 0.002, 45: 0.002, 50: 0.002, 55: 0.02, 60: 0.02, 65: 0.002, 80: 0.002}
    rates = {row["iteration"]: row["learning_rate"] for row in written}
    assert {at: rates[at] for at in expected} == expected


def test_a_warm_up_that_never_ends_follows_the_drops(quick: Callable[..., Config]) -> None:
    config = quick(*WARM, "recipe.warm_up.until_error=0.001", "recipe.learning_rate=0.01")
    quietly(config)
    rates = [row["learning_rate"] for row in rows(config.directory)]
    assert rates == [0.002] * 12 + [0.001] * 4


@pytest.mark.parametrize("look", [12, 33, 61])
def test_the_warm_up_survives_a_stop(
    look: int, warmed_up: Config, quick: Callable[..., Config]
) -> None:
    config = quick(*WARM, "recipe.warm_up.until_error=88.5")
    interrupt(config, look)
    assert 0 < summary(config.directory)["iteration"] < 80
    quietly(config)
    assert_same_run(config.directory, warmed_up.directory)


def test_a_run_that_failed_says_why_and_goes_on(
    unbroken: Config, quick: Callable[..., Config]
) -> None:
    def fail(now: Progress) -> None:
        if now.iteration == 10:
            raise RuntimeError("the cat\nsat on the keyboard")

    config = quick(*SMALL)
    with pytest.raises(RuntimeError):
        train(config, Watcher(progress=fail))
    state = summary(config.directory)
    assert (state["status"], state["reason"]) == ("failed", "the cat sat on the keyboard")
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


def test_the_speed_told_is_that_of_late(quick: Callable[..., Config]) -> None:
    """A run that was on a machine of an image a minute goes on elsewhere."""
    config = quick(*SMALL)
    interrupt(config, look=4)
    run = RunDirectory(config.directory)
    saved, _ = run.load_checkpoint(config)
    assert saved
    run.save_checkpoint(saved | {"seconds": 1e5}, config)
    told: list[Progress] = []
    train(config, Watcher(progress=told.append))
    speeds = [now.images_per_second for now in told]
    assert speeds[0] is None
    assert all(speed and speed > 1 for speed in speeds[1:])
    assert len(speeds) > 1
    assert summary(config.directory)["images_per_second"] < 0.02


def test_the_speed_is_without_evaluations(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one, of all training images, among them."""
    errors = Step.errors

    def slow(step: Step, split: str) -> tuple[float, float]:
        time.sleep(0.5)
        return errors(step, split)

    monkeypatch.setattr(Step, "errors", slow)
    config = quick(*SMALL)
    written = quietly(config)
    images = config.recipe.iterations * config.recipe.batch_size
    slept = 0.5 * (len(rows(config.directory)) + 1)
    assert images / written["images_per_second"] < written["seconds"] - slept


def test_an_evaluation_that_was_broken_off_is_no_training() -> None:
    stopwatch = Stopwatch(10.0, 4.0)
    with contextlib.suppress(KeyboardInterrupt), stopwatch.evaluating():
        time.sleep(0.1)
        assert stopwatch.evaluation_seconds() >= 4.1
        raise KeyboardInterrupt
    assert stopwatch.evaluation_seconds() >= 4.1
    assert 6 <= stopwatch.training_seconds() < 6.05


def test_a_killed_process_costs_nothing(start: Any, quick: Callable[..., Config]) -> None:
    """Of an optimizer with more to remember than the paper's; that one is killed elsewhere."""
    words = (*SMALL, "recipe.iterations=120", "optimizer=adamw", "recipe.learning_rate=0.002")
    unbroken = quick(*words, "experiment=unbroken")
    quietly(unbroken)
    config = quick(*words)
    process = start("train", *quick_words(config), *words, "checkpoint_seconds=0")
    wait_for(lambda: iteration_of(config.directory) >= 15, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 15 <= iteration_of(config.directory) < 120
    assert quietly(config)["status"] == "complete"
    assert_same_run(config.directory, unbroken.directory)
    assert "goes on from iteration" in (config.directory / "train.log").read_text()


def quick_words(config: Config) -> list[str]:
    return [
        "data=digits",
        "recipe=digits",
        "depth=8",
        "device=cpu",
        "threads=1",
        f"outputs={config.outputs}",
    ]


def iteration_of(run: Path) -> int:
    try:
        return int(summary(run)["iteration"])
    except FileNotFoundError:
        return 0


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300
) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_complete_run_says_so_and_stays_as_it_is(unbroken: Config) -> None:
    run = unbroken.directory
    before = {file: file.read_bytes() for file in run.iterdir() if file.name != "train.log"}
    lines: list[str] = []
    again = train(unbroken, Watcher(line=lines.append))
    assert [line for line in lines if "complete already" in line and str(run) in line]
    assert again["status"] == "complete"
    assert {file: file.read_bytes() for file in before if file.exists()} == before


@pytest.mark.parametrize("name", ["metrics.csv", "summary.json"])
@pytest.mark.parametrize("complete", [True, False])
def test_damaged_results_are_restored_from_the_checkpoint(
    name: str, complete: bool, unbroken: Config, quick: Callable[..., Config]
) -> None:
    config = quick(*SMALL)
    if complete:
        quietly(config)
    else:
        interrupt(config, look=9)
    file = config.directory / name
    content = file.read_bytes()
    place = content.index(b"8", 100)
    file.write_bytes(content[:place] + b"9" + content[place + 1 :])
    quietly(config)
    assert_same_run(config.directory, unbroken.directory)


def test_a_damaged_checkpoint_costs_time_and_not_the_run(
    unbroken: Config, quick: Callable[..., Config]
) -> None:
    config = quick(*SMALL)
    interrupt(config, look=5)
    interrupt(config, look=4)
    newest = config.directory / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    lines: list[str] = []
    train(config, Watcher(line=lines.append))
    assert any("warning" in line and "checkpoint" in line for line in lines)
    assert_same_run(config.directory, unbroken.directory)


def test_without_any_good_checkpoint_a_run_is_not_silently_begun_again(
    quick: Callable[..., Config],
) -> None:
    config = quick(*SMALL)
    interrupt(config, look=9)
    for file in config.directory.glob("*.pt"):
        file.write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(ResreproError, match="no checkpoint can be used"):
            quietly(config)
    assert numbers(config.directory)[-1]["iteration"] == 5


def test_another_configuration_is_refused_naming_the_key(unbroken: Config) -> None:
    before = (unbroken.directory / "config.yaml").read_bytes()
    recipe = replace(unbroken.recipe, learning_rate=0.05)
    with pytest.raises(ConfigError, match=r"recipe\.learning_rate 0\.02, here 0\.05"):
        quietly(replace(unbroken, recipe=recipe))
    assert (unbroken.directory / "config.yaml").read_bytes() == before


def test_other_data_under_the_same_name_are_refused(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(*SMALL)
    interrupt(config, look=5)
    monkeypatch.setattr(trainer, "load", lambda data: replace(load(data), digest="f" * 64))
    with pytest.raises(ResreproError, match="other data"):
        quietly(config)


def test_a_run_goes_on_with_the_threads_it_began_with(quick: Callable[..., Config]) -> None:
    config = quick(*SMALL)
    interrupt(config, look=5)
    done = quietly(replace(config, threads=None))
    assert done["threads"] == 1


def test_other_threads_are_allowed_and_warned_of(quick: Callable[..., Config]) -> None:
    config = quick(*SMALL)
    interrupt(config, look=5)
    lines: list[str] = []
    done = train(replace(config, threads=2), Watcher(line=lines.append))
    assert done["threads"] == 2
    assert any("warning" in line and "threads 2" in line for line in lines)
    torch.set_num_threads(1)


def test_another_kind_of_cpu_is_allowed_and_warned_of(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with AVX-512 adds in another order than one with AVX2."""
    config = quick(*SMALL)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    interrupt(config, look=5)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    lines: list[str] = []
    done = train(config, Watcher(line=lines.append))
    assert done["instructions"] == "AVX512"
    assert any("with instructions AVX512 and was trained with AVX2" in line for line in lines)


# Divergence


@pytest.fixture
def diverging(quick: Callable[..., Config]) -> Callable[..., Config]:
    def make(*words: str) -> Config:
        return quick("recipe.learning_rate=1e6", "recipe.iterations=30", *words)

    return make


def first_bad_iteration(config: Config) -> int:
    """When the training loss stops being finite, counted from 1, by training on plainly."""
    batches = Batches(load(config.data), "pixel", config.recipe, 0, torch.device("cpu"))
    network = networks.build(config.model, 8, 10, 1)
    networks.initialise(network, 0)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 1e6, momentum=0.9, weight_decay=1e-4)
    for iteration in range(30):
        x, labels = batches(iteration)
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not math.isfinite(loss.item()):
            return iteration + 1
    raise AssertionError("did not diverge")


@pytest.mark.parametrize("every", [1, 30])
def test_a_loss_that_is_not_finite_ends_the_run(
    every: int, diverging: Callable[..., Config]
) -> None:
    config = diverging(f"evaluate_every={every}")
    torch.set_num_threads(1)
    bad = first_bad_iteration(config)
    assert bad < 30
    words = rf"not finite at iteration {bad}, learning rate 1e\+06"
    with pytest.raises(Diverged, match=words) as diverged:
        quietly(config)
    assert diverged.value.status == 1
    state = summary(config.directory)
    assert state["status"] == "diverged"
    assert f"iteration {bad}" in state["reason"]
    for row in rows(config.directory):
        assert all(math.isfinite(value) for key, value in row.items() if key != "test_loss")
    with pytest.raises(Diverged, match=words):  # and stays so
        quietly(config)


@pytest.mark.parametrize("lag", ["nan", "inf"])
def test_a_test_loss_that_is_not_finite_does_not_end_a_run(
    lag: str, quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written down as it is, its answers are wrong, and the run ends as it would have."""

    def overflow(network: torch.nn.Module, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
        if network.training:
            return logits
        return torch.full_like(logits, float(lag))

    undisturbed = quick(*SMALL)
    quietly(undisturbed)
    build = networks.build

    def lagging(*args: Any) -> networks.CifarNet:
        network = build(*args)
        network.register_forward_hook(overflow)
        return network

    monkeypatch.setattr(networks, "build", lagging)
    config = quick(*SMALL, "tag=lagging")
    done = quietly(config)
    assert (done["status"], done["reason"]) == ("complete", None)
    for here, there in zip(rows(config.directory), rows(undisturbed.directory), strict=True):
        assert here["train_loss"] == there["train_loss"]
        assert not math.isfinite(here["test_loss"])
        assert here["test_error"] == 100
    assert (done["final_test_error"], done["clean_train_error"]) == (100, 100)
    assert quietly(config)["final_test_error"] == done["final_test_error"]


def test_plain_110_evaluated_at_every_iteration(quick: Callable[..., Config]) -> None:
    """The paper's own case: BN's statistics lag, the logits overflow, and the net trains on."""
    config = quick("model=plain", "depth=110", "recipe.iterations=3", "evaluate_every=1")
    done = quietly(config)
    assert done["status"] == "complete"
    written = rows(config.directory)
    assert [row["iteration"] for row in written] == [1, 2, 3]
    assert any(math.isnan(row["test_loss"]) for row in written), "it no longer shows the case"
    assert all(math.isfinite(row["train_loss"]) for row in written)
    assert all(0 <= row["test_error"] <= 100 for row in written)


@pytest.mark.parametrize("every", [1, 30])
def test_a_diverged_run_keeps_its_last_good_checkpoint(
    every: int, diverging: Callable[..., Config]
) -> None:
    config = diverging(f"evaluate_every={every}", "checkpoint_seconds=0")
    with pytest.raises(Diverged):
        quietly(config)
    saved = checkpoint(config.directory)
    assert saved["iteration"] > 0
    weights = [tensor for name, tensor in saved["network"].items() if "running" not in name]
    assert all(weight.isfinite().all() for weight in weights)
    with pytest.raises(Diverged):
        quietly(config)
    assert checkpoint(config.directory)["iteration"] == saved["iteration"]


def test_what_needs_less_memory_changes_no_bit(quick: Callable[..., Config]) -> None:
    words = ("depth=14", *SMALL)
    one = quick(*words)
    quietly(one)
    for less in ("activation_checkpointing=true", "data.resident=host"):
        other = quick(*words, less, f"tag=with-{less.split('=')[0]}")
        quietly(other)
        assert_same_run(one.directory, other.directory)


def test_a_step_is_captured_once_and_replayed_on_each_batch(quick: Callable[..., Config]) -> None:
    """Here without a GPU."""
    captured: list[Any] = []
    batches: list[int] = []

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        captured.append(run)
        return run

    def train_on(x: Tensor, labels: Tensor) -> None:
        assert x[0, 0, 0, 0] == labels[0]  # of one batch, and of this one
        batches.append(int(labels[0]))

    graph = StepGraph(train_on)
    graph.capture = capture  # type: ignore[method-assign, assignment]
    graph.eagerly = train_on  # type: ignore[method-assign]
    for number in range(11):
        graph(torch.full((2, 3, 8, 8), float(number)), torch.full((2,), number))
    assert batches == list(range(11))
    assert len(captured) == 1


def test_the_rate_of_a_captured_step_is_one_tensor_that_its_optimizer_reads_anew() -> None:
    """As on a GPU: one fused kernel. A number would be a constant of the graph."""

    def weights(rate: float | Tensor) -> tuple[torch.nn.Parameter, torch.optim.SGD]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 8))
        return weight, torch.optim.SGD([weight], lr=rate, momentum=0.9, fused=True)

    on_device = torch.tensor(0.1)
    (one, by_tensor), (other, by_number) = weights(on_device), weights(0.1)
    for rate in (0.1, 0.1, 0.01, 0.001):
        one.grad, other.grad = torch.ones(8), torch.ones(8)
        optimizers.set_rate(by_tensor, rate)
        optimizers.set_rate(by_number, float(torch.tensor(rate)))
        by_tensor.step()
        by_number.step()
        assert torch.equal(one, other)
    assert by_tensor.param_groups[0]["lr"] is on_device


def test_three_iterations_go_before_a_capture() -> None:
    """PyTorch asks for some: they allocate, and cuDNN chooses its algorithms."""
    order: list[str] = []

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        order.append("capture")
        return lambda: order.append("replay")

    graph = StepGraph(lambda *_: None)
    graph.capture = capture  # type: ignore[method-assign, assignment]
    graph.eagerly = lambda *_: order.append("eager")  # type: ignore[method-assign, assignment]
    for _ in range(5):
        graph(torch.zeros(1), torch.zeros(1))
    assert order == ["eager", "eager", "eager", "capture", "replay", "replay"]


def test_a_replay_that_does_nothing_is_an_error(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a graph that was captured on another device: it would end with no error at all."""
    config = quick("recipe.iterations=12", "evaluate_every=6")
    monkeypatch.setattr(StepGraph, "eagerly", lambda graph, *batch: graph.train_on(*batch))
    monkeypatch.setattr(StepGraph, "capture", staticmethod(lambda _run: lambda: None))
    training = Training(config, RunDirectory(config.directory), Watcher(), load(config.data))
    training.step.graph = StepGraph(training.step.train_on)
    training.run.open(config)
    for _ in range(StepGraph.EAGER):
        training.iterate()
    assert training.step.read().wrong > 0
    training.iterate()
    words = r"cpu has done 3 of 4 iterations; its captured graph is empty: use cuda_graph=false"
    with pytest.raises(ResreproError, match=words):
        training.evaluate()


@pytest.mark.parametrize(("device", "index"), [("cuda:1", 1), ("cpu", None), ("cuda", None)])
def test_the_gpu_that_is_named_is_the_current_one(
    device: str, index: int | None, quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph is captured on the current GPU's stream."""
    chosen: list[int | None] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    devices.set_up(replace(quick(), device=device), 1)
    assert chosen == ([index] if index is not None else [])


def test_where_it_was_proven_a_step_is_captured_unless_asked_otherwise(
    quick: Callable[..., Config],
) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert devices.captures(quick(), cuda)
    assert not devices.captures(quick(), cpu)
    assert not devices.captures(quick("cuda_graph=false"), cuda)
    for unproven in ("compile=true", "activation_checkpointing=true", "optimizer=adamw"):
        assert not devices.captures(quick(unproven), cuda)
    assert not devices.captures(replace(quick(), extensions={"gated": "0" * 64}), cuda)
    assert devices.captures(quick("optimizer=adamw", "cuda_graph=true"), cuda)


def test_a_captured_step_is_for_gpus(quick: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="cuda_graph=true: is for NVIDIA GPUs"):
        quietly(quick("cuda_graph=true"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_lack_of_memory_says_what_needs_less_and_the_run_goes_on_with_it(
    quick: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    config = quick(*SMALL)

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Training, "iterate", fail)
        with pytest.raises(ResreproError, match="activation_checkpointing=true or a smaller"):
            quietly(config)
    assert json.loads((config.directory / "summary.json").read_text())["status"] == "failed"
    assert quietly(replace(config, activation_checkpointing=True))["status"] == "complete"


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (InvalidCxxCompiler(), r"compile=true needs a C\+\+ compiler, .*; install g"),
        (ValueError("of a kind"), "compile=true: ValueError: of a kind; use compile=false"),
    ],
)
def test_what_compiling_lacks_is_one_line_in_its_summary_too(
    quick: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    cause: Exception,
    message: str,
) -> None:
    def fail(*_: Any) -> None:
        raise InductorError(cause, None)

    config = quick(*SMALL)
    monkeypatch.setattr(Training, "iterate", fail)
    with pytest.raises(ResreproError, match=message) as error:
        quietly(config)
    state = json.loads((config.directory / "summary.json").read_text())
    assert (state["status"], state["reason"]) == ("failed", str(error.value))


def test_the_first_news_says_where_a_run_begins_or_goes_on_and_the_last_what_is_saved(
    quick: Callable[..., Config],
) -> None:
    config, news = quick(*SMALL), []

    def stop(now: Progress) -> None:
        news.append(now.iteration)
        if now.iteration == 10 and news.count(10) == 1:
            raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(config, Watcher(progress=stop))
    assert news[0] == 0
    assert news[-1] == summary(config.directory)["iteration"] == 10
    news.clear()
    train(config, Watcher(progress=lambda now: news.append(now.iteration)))
    assert news[0] == 10
