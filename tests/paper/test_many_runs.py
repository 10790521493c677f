"""What looks at an experiment of 300 runs answers soon."""

import subprocess
import time
from pathlib import Path

import made_up
import pytest
from survival import COMMAND, SOAK

DEPTHS, SEEDS = (20, 32, 44, 56, 110), range(30)


@pytest.mark.skipif(
    not SOAK, reason="where others use the machine its limits are no limits: scripts/soak"
)
def test_three_hundred_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        done = subprocess.run(
            [COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        took = time.monotonic() - begun
        assert (done.returncode, done.stderr) == (0, "")
        assert took < limit, words
        assert words[0] != "status" or "residual-110-s29" in done.stdout
