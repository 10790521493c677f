import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resrepro.configuration.schema import Config
from resrepro.errors import ResreproError
from resrepro.runs.run_directory import Row, RunDirectory
from resrepro.studies.estimate import forecast
from resrepro.studies.plan import Plan

Rows = Callable[..., list[Row]]


def lines(*runs: Config) -> str:
    return "\n".join(forecast(Plan("x", list(runs), [], None)))


def write_bench(outputs: str, **more: Any) -> None:
    speed = {"name": "residual-8-s0", "depth": 8, "image_size": 8, "batch_size": 128}
    speed |= {"images_per_second": 100.0} | more
    report = {"device": "NVIDIA X", "threads": 8, "speeds": [speed]}
    folder = Path(outputs) / "bench"
    folder.mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps(report))


def test_past_runs_tell_what_is_missing_and_how_long_it_takes(
    quick: Callable[..., Config], made_up_run: Callable[..., RunDirectory], rows: Rows
) -> None:
    done, new = quick("recipe.iterations=45000"), quick("recipe.iterations=45000", "seed=1")
    made_up_run(done, rows(last=45000), images_per_second=400.0, device="cpu", threads=2)
    text = lines(done, new)
    assert text.startswith("study x: 2 runs, 1 of them done; to be made:\n")
    (row,) = [line.split() for line in text.splitlines() if line.startswith("residual")]
    assert row == ["residual-8-s1", "waiting", "45,000", "4"]  # 45000 * 128 / 400 / 3600
    assert "cpu: about 8 core-hours, 2 cores a run, from runs of digits\n" in text


def test_an_unfinished_run_takes_what_is_left(
    quick: Callable[..., Config], made_up_run: Callable[..., RunDirectory], rows: Rows
) -> None:
    run = quick("recipe.iterations=45000")
    made_up_run(run, rows(last=22500), status="interrupted", images_per_second=400.0)
    assert "interrupted        22,500             2\n" in lines(run)


def test_bench_tells_too_and_another_depth_goes_in_proportion(
    quick: Callable[..., Config],
) -> None:
    run = quick("recipe.iterations=11250")
    write_bench(run.outputs)
    deep = replace(run, depth=32)
    text = lines(run, deep)
    assert "NVIDIA X: about 20 GPU-hours, from " in text  # 4 and 16
    assert "bench.json; depth 32 in proportion to the nearest measured" in text


OTHERS = ("model=plain", "model.shortcut=B", "model.width=32", "precision=bfloat16", "data=cifar10")


@pytest.mark.parametrize("word", OTHERS)
def test_nothing_is_guessed_from_other_nets(quick: Callable[..., Config], word: str) -> None:
    run = quick(word)
    write_bench(run.outputs)
    text = lines(run)
    assert "No such net was trained or timed yet" in text
    assert "-hours" not in text
    assert f"resrepro bench model={run.model.name} depth=8 image_size=[" in text


def test_a_damaged_bench_is_named(quick: Callable[..., Config]) -> None:
    run = quick()
    write_bench(run.outputs)
    (Path(run.outputs) / "bench/bench.json").write_text("{")
    with pytest.raises(ResreproError, match=r"bench\.json cannot be read"):
        lines(run)


def test_a_dry_run_touches_nothing(resrepro_here: Callable[..., Any], tmp_path: Path) -> None:
    done = resrepro_here("reproduce", "study=figure6", "seed=0,1", "--dry-run")
    assert (done.status, done.stderr) == (0, "")
    assert "study figure6: 20 runs, 0 of them done" in done.stdout
    assert not list(tmp_path.iterdir())
