import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resrepro.bench import gpu_check

ROOT = Path(__file__).parents[2]
DRY = ["--dry-run", "--device", "cpu", "--tests", f"{ROOT}/tests/test_gpu.py", "--output"]


def run(folder: Path, seconds: float, installed: Path) -> subprocess.CompletedProcess[str]:
    """What the script does where the wheel is installed, and nothing else of a clone is used."""
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": python, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [ROOT / "scripts/gpu_check", str(seconds), *DRY, str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_dry_run_walks_through_all_steps(
    tmp_path: Path,
    installed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RESREPRO_DATA", str(tmp_path / "data"))
    assert gpu_check.main(["0", *DRY, str(tmp_path)]) == 0
    assert "no time left" in capsys.readouterr().out
    done = run(tmp_path, 600, installed)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name[0] for name in results} == set("12345")
    assert results["2 killed and resumed"]["result"] == {"kills": 1, "passed": True}
    assert results["1 residual follows the CPU"]["result"]["passed"]
    assert results["3 2 at once"]["result"]["images a second in all"] > 0
    assert results["4 the study"]["result"]["complete"]
    summary = (tmp_path / "summary.md").read_text()
    assert all(f"| {name} |" in summary for name in results)
    with tarfile.open(tmp_path / "small.tar.gz") as archive:
        names = archive.getnames()
    assert "runs/smoke/plain-8-s0/metrics.csv" in names
    assert not [name for name in names if name.endswith(".pt")]

    assert gpu_check.main(["600", *DRY, str(tmp_path)]) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_other_sizes_do_not_mix(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "settings.json").write_text('{"device": "cuda", "sizes": {}}')
    done = run(tmp_path, 1, installed)
    assert done.returncode == 2
    assert "holds a check with other sizes" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda:99"], r"device=cuda:99: "),
        (["--device", "cpu", "--data", "absent"], r"--data absent: there is no such folder"),
    ],
)
def test_what_cannot_be_checked_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["1", "--output", str(tmp_path / "out"), *words])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_fails_ends_the_others(tmp_path: Path) -> None:
    sizes = replace(gpu_check.tiny_sizes(), data=["data=digits", "precision=tf32"])
    check = gpu_check.Check(sizes, "cpu", tmp_path, float("inf"))
    gpu_check.at_once(check)
    assert (
        "precision=tf32: is a mode of NVIDIA GPUs"
        in check.results["3 2 at once"]["result"]["failed"]
    )


@pytest.mark.parametrize(
    ("result", "right"),
    [
        ({"failed": "RuntimeError: no"}, False),
        ({"passed": False}, False),
        ({"passed": True, "status": 130}, True),
        ({"status": 1}, False),
        ({"status": 0}, True),
        ({"images_per_second": 1.0}, True),
    ],
)
def test_what_counts_as_passed(result: dict[str, Any], right: bool) -> None:
    assert gpu_check.passed(result) is right


def test_a_part_that_fails_stops_no_other(tmp_path: Path, capsys: Any) -> None:
    check = gpu_check.Check(gpu_check.tiny_sizes(), "cpu", tmp_path, float("inf"))
    done: list[str] = []

    def part(name: str, work: Callable[[], Any]) -> None:
        with check.part(name) as keep:
            if keep:
                keep(work())
                done.append(name)

    part("one", lambda: 1 / 0)
    part("two", lambda: {"status": 0})
    part("two", lambda: {"status": 1})
    assert done == ["two"]
    assert "ZeroDivisionError" in check.results["one"]["result"]["failed"]


def test_tests_that_are_not_there_are_missed(tmp_path: Path) -> None:
    """An installed package has none, and leaving them out without a word would prove nothing."""
    nowhere = tmp_path / "nowhere"
    check = gpu_check.Check(gpu_check.tiny_sizes(), "cpu", tmp_path, float("inf"), nowhere)
    gpu_check.tests(check)
    (result,) = check.results.values()
    assert "nowhere is not there" in result["result"]["failed"]
    assert "--tests names the folder of a clone" in result["result"]["failed"]
