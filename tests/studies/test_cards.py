import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resrepro.configuration.schema import Config
from resrepro.errors import ConfigError
from resrepro.studies import cards
from resrepro.studies.cards import Card, shared_out

GIB = 2**30


@pytest.fixture(autouse=True)
def _two_gib_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resrepro.training.memory.needed", lambda *_: 2 * GIB)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Doubles of the cards, by how much of each is free, and of the cores."""

    def make(free: list[float], cores: int = 64) -> None:
        def mem_get_info(device: str) -> tuple[int, int]:
            return int(GIB * free[int(device.removeprefix("cuda:"))]), 80 * GIB

        monkeypatch.setattr("torch.cuda.device_count", lambda: len(free))
        monkeypatch.setattr("torch.cuda.mem_get_info", mem_get_info)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA Test")
        monkeypatch.setattr("joblib.cpu_count", lambda: cores)
        monkeypatch.setattr(cards, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))

    return make


@pytest.fixture(autouse=True)
def pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a daemon of NVIDIA's MPS listens; in these tests one does."""
    folder = tmp_path / "mps"
    folder.mkdir()
    (folder / "control").touch()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(folder))
    return folder


def test_where_processes_take_turns_one_captured_run_has_the_card(
    quick: Callable[..., Config], machine: Callable[..., None], pipes: Path
) -> None:
    (pipes / "control").unlink()
    machine([40, 40])
    assert shared_out(quick(), 9, ["cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1"]
    assert shared_out(quick("cuda_graph=false"), 9, ["cuda:0"]) == ["cuda:0"] * 4


def test_without_figures_memory_cores_and_a_guess_decide(
    quick: Callable[..., Config], machine: Callable[..., None]
) -> None:
    run = quick()
    machine([40])
    assert shared_out(run, 9, ["cuda:0"]) == ["cuda:0"] * 4
    assert shared_out(run, 3, ["cuda:0"]) == ["cuda:0"] * 3
    machine([40, 4.5, 0.1])
    assert shared_out(run, 9, ["cuda:0", "cuda:1", "cuda:2"]) == [
        "cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1", "cuda:0", "cuda:0",
    ]  # fmt: skip
    machine([40, 40], cores=5)
    assert shared_out(run, 9, ["cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1"] * 2
    with pytest.raises(ConfigError, match="device=cuda:7: there are cuda:0 to cuda:1"):
        shared_out(run, 9, ["cuda:7"])


def measured(run: Config, **of: Any) -> dict[str, Any]:
    shares = {"share_of_matrix_rate": 0.1, "share_of_bandwidth": 0.1}
    return {"batch_size": run.recipe.batch_size, "image_size": 8, **shares, **of}


@pytest.mark.parametrize(
    ("share", "at_once"), [(0.9, 1), (0.51, 2), (0.3, 3), (0.15, 7), (0.001, 8)]
)
def test_what_bench_measured_on_such_a_card_says_how_many_keep_it_busy(
    quick: Callable[..., Config], tmp_path: Path, share: float, at_once: int
) -> None:
    run = replace(quick(), outputs=str(tmp_path))
    data: Any = type("Data", (), {"train_images": type("Images", (), {"shape": (9, 1, 8, 8)})})
    speeds = [
        measured(run, share_of_matrix_rate=share / 2, share_of_bandwidth=share),
        measured(run, share_of_matrix_rate=share, share_of_bandwidth=share / 2),
        measured(run, image_size=32, share_of_bandwidth=1.0),
        measured(run, batch_size=1, share_of_bandwidth=1.0),
    ]
    (tmp_path / "bench").mkdir()
    file = tmp_path / "bench/bench.json"
    file.write_text(json.dumps({"device": "NVIDIA Test", "speeds": speeds}))
    assert cards.by_use(run, data, Card("NVIDIA Test", GIB)) == at_once
    assert cards.by_use(run, data, Card("another card", GIB)) == 4
    for text in ("no JSON", "[]", "{}", json.dumps({"device": "NVIDIA Test", "speeds": [{}]})):
        file.write_text(text)
        assert cards.by_use(run, data, Card("NVIDIA Test", GIB)) == 4


def test_images_that_lie_on_the_card_are_counted(quick: Callable[..., Config]) -> None:
    run = quick()

    def most(resident: str, images: float, free: float) -> int:
        here = replace(run, data=replace(run.data, resident=resident))
        shape = type("Images", (), {"shape": (9, 1, 8, 8)})
        data: Any = type(
            "Data", (), {"train_images": shape, "classes": 10, "image_bytes": int(GIB * images)}
        )
        return cards.by_memory(here, data, Card("", int(GIB * free)))

    assert [most(resident, 3, 20) for resident in ("auto", "device", "host")] == [4, 4, 10]
    assert [most(resident, 11, 20) for resident in ("auto", "device", "host")] == [10, 1, 10]
