"""What the documents and examples show works as it stands there, but for smaller, shorter runs."""

import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, blocks, commands, first_line

import resrepro

Run = Callable[..., Any]
SHORT = ("recipe.iterations=3", "recipe.batch_size=16", "model.width=4", "device=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Looks like a clone, as far as the documents need it, with outputs of its own."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("examples", "conf", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def shortened(words: list[str]) -> list[str]:
    """A document's command without `resrepro`, and its training made small."""
    assert words[0] == "resrepro"
    trains = words[1] in ("train", "reproduce")
    return [*words[1:], *(SHORT if trains else ())]


def test_the_commands_of_extending(resrepro_in: Run, folder: Path) -> None:
    shown = commands("docs/extending.md")
    assert len(shown) >= 5
    for text in blocks("docs/extending.md", "yaml"):  # a file; its first line names it
        file = folder / text.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(parents=True)
        file.write_text(text)
    for words in shown:
        done = resrepro_in(folder, *shortened(words))
        assert done.status == 0, f"{' '.join(words)}: {done.stderr}"
    figures = {file.name for file in (folder / "outputs/digits/figures").glob("*.png")}
    assert {"figure1.png", "figure6.png"} <= figures
    assert (folder / "outputs/digits/residual-20-s0-rmsprop/summary.json").exists()
    assert "gated-56" in (folder / "outputs/digits/tables/table6.md").read_text()


def test_the_commands_of_scale(resrepro_in: Run, tmp_path: Path) -> None:
    """Through engines as far as their keys go: tests/cluster has the engines."""
    shown = [words for words in commands("docs/scale.md") if words[0] == "resrepro"]
    engines = [words for words in shown if any("launcher" in word for word in words)]
    assert (len(shown), len(engines)) == (7, 2)
    for words in shown:
        if "hydra/launcher=ray" in words and not find_spec("hydra_plugins.hydra_ray_launcher"):
            continue  # scripts/test does without Ray, scripts/soak has it
        short = [*words[1:], "--cfg", "job"] if words in engines else shortened(words)
        done = resrepro_in(tmp_path, *short)
        assert done.status == 0, f"{' '.join(words)}: {done.stderr}"


@pytest.mark.parametrize("example", ["gated.py", "preactivation.py", "own_data.py"])
def test_an_example_is_shown_by_its_first_line(example: str) -> None:
    """`test_the_commands_of_extending` runs two of these; the third differs in the file alone."""
    words = first_line(example)
    assert words[:2] in (["resrepro", "reproduce"], ["resrepro", "train"])
    assert f"examples/{example}" in words
    lines = (ROOT / "examples" / example).read_text().splitlines()
    assert 20 <= len(lines) <= 40


def test_the_first_line_of_preactivation(resrepro_in: Run, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = resrepro_in(tmp_path, *shortened(first_line("preactivation.py")), "depth=8,14")
    assert (done.status, done.stderr) == (0, "")


def test_the_programs_of_python(
    folder: Path, resrepro_in: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    words = ("train", "model=plain", "data=digits", "recipe=digits", "depth=56", *SHORT)
    assert resrepro_in(folder, *words).status == 0
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks("docs/python.md", "python"):
        exec(block.replace('"seed=5"', f'"seed=5", *{SHORT}'), names)
    assert names["run"].summary["status"] == "complete"
    assert len(names["finals"]) >= 1
    assert resrepro.open("outputs/digits")["residual-20-s5"].curve["iteration"][-1] == 3


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples/notebook.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "outputs are cleared"
    install, settings = cells[:2]
    assert "%pip install" in install.source
    install.source = "%matplotlib inline"
    assert "ITERATIONS = 300" in settings.source
    settings.source = settings.source.replace("ITERATIONS = 300", "ITERATIONS = 3")
    assert "study=digits" in cells[2].source
    cells[2].source = cells[2].source.replace("study=digits", "study=digits model.width=4")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    figure, table = cells[3].outputs, cells[4].outputs
    assert "image/png" in figure[0]["data"]
    assert "residual" in json.dumps(table)
    assert (tmp_path / "outputs/digits/report.html").exists()
