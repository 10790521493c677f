"""What looks at an experiment of 300 runs answers soon."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pytest

DEPTHS, SEEDS = (20, 32, 44, 56, 110), range(30)


@pytest.mark.alone
def test_three_hundred_runs(
    tmp_path: Path, resrepro_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    for model in ("plain", "residual"):
        for depth in DEPTHS:
            for seed in SEEDS:
                error = 5 + depth / 20 + 0.1 * seed
                made = made_up.config(tmp_path / "outputs", model, depth, seed)
                made_up.write(made, train=error, test=error + 3, evaluations=100)
    for limit, *words in (
        (2, "status"),
        (10, "plot", "figure=figure6", f"experiment={made_up.EXPERIMENT}"),
        (10, "report", f"experiment={made_up.EXPERIMENT}"),
    ):
        begun = time.monotonic()
        done = resrepro_in(tmp_path, *words)
        took = time.monotonic() - begun
        assert (done.status, done.stderr) == (0, "")
        assert took < limit, words
    assert "residual-110-s29" in resrepro_in(tmp_path, "status").stdout
