import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import DIGITS, EXPERIMENT, config, write, write_nets
from PIL import Image

from resrepro.cli import main
from resrepro.configuration.composition import expand
from resrepro.configuration.schema import Data
from resrepro.paper.artefacts import make_artefacts
from resrepro.progress import Watcher
from resrepro.runs.run_directory import RunDirectory
from resrepro.training.trainer import train


def make(outputs: Path, *artefacts: str) -> list[str]:
    return list(make_artefacts(str(outputs), EXPERIMENT, list(artefacts)))


def verdicts(folder: Path, stem: str = "claims") -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in json.loads((folder / f"{stem}.json").read_text())}


@pytest.fixture
def half_finished(tmp_path: Path) -> Path:
    """A sweep that was stopped in the middle."""
    write(config(tmp_path, "plain", 20), train=0.7, test=9.5, response=0.5)
    write(config(tmp_path, "plain", 20, 1), train=0.8, test=9.7, response=0.5)
    write(config(tmp_path, "plain", 32), train=0.9, test=10.0, response=0.45)
    write(config(tmp_path, "plain", 32, 1), status="running")
    write(config(tmp_path, "plain", 56), status="interrupted")
    write(config(tmp_path, "plain", 56, 1), status="running", evaluations=0)
    write(config(tmp_path, "residual", 20), train=0.4, test=8.5)
    write(config(tmp_path, "residual", 56), status="diverged")
    RunDirectory(config(tmp_path, "residual", 56, 1).directory).open(
        config(tmp_path, "residual", 56, 1)
    )
    return tmp_path


HALF_MISSING = [
    "plain-32-s1 has 32,000 of 64,000 iterations (running)",
    "plain-56-s0 has 32,000 of 64,000 iterations (interrupted)",
    "plain-56-s1 has not been evaluated yet",
    "residual-56-s0 has 32,000 of 64,000 iterations (diverged)",
    "residual-56-s1 has not been evaluated yet",
    "the responses of residual-20-s0 cannot be measured: it has no checkpoint",
]


def test_half_a_sweep_gives_all_artefacts_and_names_what_is_missing(half_finished: Path) -> None:
    lines = make(half_finished, "report")
    folder = half_finished / EXPERIMENT
    missing = [line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")]
    assert sorted(missing) == HALF_MISSING

    for name in ("figure1", "figure6", "figure7"):
        for form in ("png", "svg", "pdf"):
            assert (folder / f"figures/{name}.{form}").stat().st_size > 1000
    with (folder / "tables/table6.csv").open(newline="") as file:
        table = {row["net"]: row["n"] for row in csv.DictReader(file)}
    assert table == {"plain-20": "2", "plain-32": "1", "ResNet-20": "1"}

    made = verdicts(folder)
    assert made["plain-train"]["n"] == {"plain-32": 1, "plain-20": 2}
    assert made["plain-test"]["n"] == {"plain-32": 1, "plain-20": 2}
    assert made["residual-train"]["reason"] == "needs ResNet-56"
    page = (folder / "report.html").read_text()
    assert all(lack in page for lack in HALF_MISSING)
    assert lines[-1] == str(folder / "report.html")


def test_without_a_complete_run_there_are_figures_and_open_claims(tmp_path: Path) -> None:
    for depth in (20, 56):
        write(config(tmp_path, "plain", depth), status="running")
    lines = make(tmp_path, "report")
    folder = tmp_path / EXPERIMENT
    assert {file.stem for file in (folder / "figures").iterdir()} == {"figure1", "figure6"}
    assert {entry["word"] for entry in verdicts(folder).values()} == {"not decided"}
    assert "missing: figure7 is not drawn: it needs complete runs with their checkpoints" in lines
    with (folder / "tables/table6.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == []
    assert (folder / "report.html").exists()


def test_without_evaluated_runs_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(config(tmp_path, "plain", 20), status="running", evaluations=0)
    for words in (["report"], ["plot"]):
        assert main([*words, f"outputs={tmp_path}"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"no run of {EXPERIMENT} in {tmp_path} has been evaluated yet" in said


def test_only_what_is_asked_for_is_made(tmp_path: Path) -> None:
    write_nets(tmp_path, {("plain", 20): {"test": [9.0]}, ("plain", 56): {"test": [13.0]}})
    folder = tmp_path / EXPERIMENT
    before = set(folder.iterdir())
    lines = make(tmp_path, "figure1")
    assert lines == [f"{folder / 'figures/figure1.png'} (SVG and PDF beside it)"]
    assert set(folder.iterdir()) - before == {folder / "figures"}
    make(tmp_path, "table6", "claims")
    made = {file.name for file in set(folder.iterdir()) - before}
    assert made == {"figures", "tables", "claims.json", "claims.md"}


def test_made_again_they_are_the_same_to_the_byte(tmp_path: Path) -> None:
    quantities = {"test": [9.0, 9.3], "response": [0.5, 0.4]}
    write_nets(tmp_path, {("plain", depth): quantities for depth in (20, 56)})
    folder = tmp_path / EXPERIMENT

    def files() -> dict[str, bytes]:
        make(tmp_path, "report")
        found = [file for file in folder.rglob("*") if file.is_file()]
        return {str(file): file.read_bytes() for file in found}

    first = files()
    assert {Path(name).suffix for name in first} >= {".html", ".svg", ".pdf", ".png", ".tex"}
    assert files() == first


def test_tags_are_kept_apart_with_what_each_lacks(tmp_path: Path) -> None:
    write(config(tmp_path, "plain", 20, tag="warm"), response=0.5)
    write(config(tmp_path, "plain", 56, tag="warm"), status="running")
    write(config(tmp_path, "plain", 20))
    lines = make(tmp_path, "report")
    folder = tmp_path / EXPERIMENT
    said = [line.split(" (")[0] for line in lines if "claims" in line and str(folder) in line]
    assert said == [str(folder / "claims.md"), str(folder / "claims-warm.md")]
    page = (folder / "report.html").read_text()
    assert page.count("plain-56-s0-warm has 32,000 of 64,000 iterations") == 1
    assert page.count("the responses of plain-20-s0 cannot be measured") == 1
    for name in ("figures/figure6.png", "tables/table6.md", "claims.md"):
        file = folder / name
        assert file.exists()
        assert file.with_stem(f"{file.stem}-warm").exists()


def test_lines_name_every_verdict_and_every_file(tmp_path: Path) -> None:
    write_nets(tmp_path, {("plain", d): {"train": [e, e + 0.1]} for d, e in ((20, 1.0), (56, 9.0))})
    lines = make(tmp_path, "figure1", "figure6", "table6", "claims")
    folder = tmp_path / EXPERIMENT
    for entry in verdicts(folder).values():
        seeds = f", n = {min(entry['n'].values())}" if entry["n"] else ""
        (at,) = (i for i, line in enumerate(lines) if entry["statement"] in line)
        assert lines[at] == f"{entry['word']:<16}{entry['statement']}{seeds}"
        if entry["word"] == "not decided":
            assert lines[at + 1] == f"{'':16}{entry['reason']}"
    files = [line.split(" (")[0] for line in lines if line.startswith(str(folder))]
    names = ("figures/figure1.png", "figures/figure6.png", "tables/table6.md", "claims.md")
    assert files == [str(folder / name) for name in names]
    assert lines[-1].endswith("claims.md (primary claims: 1 supported, 3 not decided)")


def test_nets_trained_on_from_a_constructed_one_do_not_stop_the_others(
    tmp_path: Path,
) -> None:
    outputs = tmp_path / "outputs"
    for run in expand("train", [[*quick_sweep(outputs), "model=plain", "seed=0,1"]], None):
        train(run, Watcher())
        words = ["construct", f"run={run.directory}", "depth=14", "device=cpu"]
        assert main(words) == 0
        assert main([*words, "recipe.iterations=3"]) == 0
    assert main(["report", f"outputs={outputs}"]) == 0
    folder = outputs / "digits"
    with (folder / "tables/table6.csv").open(newline="") as file:
        assert [row["net"] for row in csv.DictReader(file)] == ["plain-8", "plain-14 from 8"]
    with (folder / "tables/table6-constructed8-trained.csv").open(newline="") as file:
        assert [(row["net"], row["n"]) for row in csv.DictReader(file)] == [("plain-14", "2")]


def quick_sweep(outputs: Path) -> list[str]:
    return [
        f"outputs={outputs}",
        "data=digits",
        "recipe=digits",
        "recipe.iterations=4",
        "depth=8",
        "device=cpu",
        "threads=1",
    ]


STUDY = """\
name: pictures
runs:
  - model=plain depth=8,14
  - model=residual depth=8,14 model.shortcut=B
overrides: data=image_folder recipe=digits recipe.iterations=4 model.width=8
artefacts: [constructed, figure1, figure6, figure7, table6, claims, report]
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of pictures of 12x12 pixels."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for number, name in enumerate(("ants", "bees", "<cats> & dogs")):
            folder = tmp_path / "my pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draws.integers(0, 128, (12, 12, 3), np.uint8)
                pixels[..., number] += 100
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "my pictures"


def test_other_data_other_width_and_option_b_go_through_everything(
    tmp_path: Path, pictures: Path, resrepro: Callable[..., Any]
) -> None:
    (tmp_path / "own" / "study").mkdir(parents=True)
    (tmp_path / "own" / "study" / "pictures.yaml").write_text(STUDY)
    words = ("--config-dir", "own", "study=pictures", f"data.root={json.dumps(str(pictures))}")
    done = resrepro("reproduce", *words, "device=cpu")
    assert (done.status, done.stderr) == (0, "")
    assert "missing" not in done.stdout

    folder = tmp_path / "outputs" / "pictures"
    for name in ("figure1", "figure6", "figure7"):
        assert (folder / f"figures/{name}.png").exists()
        svg = (folder / f"figures/{name}.svg").read_text()
        text = " ".join(re.sub(r"<[^>]*>", " ", svg).split())
        for said in ("images of my pictures", "4 iterations for 64,000", "width 8", "option B"):
            assert said in text
    with (folder / "tables/table6.csv").open(newline="") as file:
        table = {row["net"]: row for row in csv.DictReader(file)}
    assert list(table) == ["plain-8", "plain-14", "ResNet-8", "ResNet-14", "plain-14 from 8"]
    for row in table.values():
        assert 0 <= float(row["final test error %"]) <= 100
        assert row["difference"] == ""
    # Two projections with BN: 8 to 16 and 16 to 32 filters.
    more = 8 * 16 + 16 * 32 + 2 * 16 + 2 * 32
    counts = {net: int(row["parameters"].replace(",", "")) for net, row in table.items()}
    assert counts["ResNet-14"] == counts["plain-14"] + more

    made = verdicts(folder)
    assert made["construction-exists"]["word"] == "supported"
    decided = {key for key, entry in made.items() if entry["difference"] is not None}
    assert decided == made.keys() - {"110-residual", "110-plain", "1202-train", "1202-test"}
    for model in ("plain", "residual"):
        for depth in (8, 14):
            run = RunDirectory(folder / f"{model}-{depth}-s0")
            assert len(run.responses() or []) == depth - 1
    assert (folder / "report.html").exists()
    assert re.search(r"plain-14-s0-constructed8 +complete", done.stdout)


def test_a_caption_may_hold_any_folders_name(tmp_path: Path) -> None:
    data = Data("image_folder", root="/data/<b>$x_{y$ & z")
    write(config(tmp_path, "plain", 20, data=data, recipe=DIGITS), response=0.5)
    write(config(tmp_path, "plain", 56, data=data, recipe=DIGITS), response=0.5)
    lines = make(tmp_path, "report")
    assert not any("missing" in line for line in lines)
    page = (tmp_path / EXPERIMENT / "report.html").read_text()
    assert "images of &lt;b&gt;$x_{y$ &amp; z" in page
    assert "<b>" not in page
