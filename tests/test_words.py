"""Whatever the words of a command are: it runs, or one line refuses them.

What comes after the configuration is left out, so that a command line takes a moment;
test_configurations.py trains.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import survival
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_configurations import NONSENSE, OTHER_KEYS, PREFIXES, SENSIBLE, nonsense, text

from resrepro import cli
from resrepro.bench import speed
from resrepro.configuration import composition
from resrepro.studies import study, sweep

KEYS = [
    *SENSIBLE,
    *OTHER_KEYS,
    *("data.root", "data.archive", "data.cache", "run", "jobs", "study", "study.runs", "figure"),
    *("study.artefacts", "study.overrides", "image_size", "repeats", "seconds", "conventional"),
    *("hydra", "hydra/launcher", "hydra.launcher.x", "hydra.run.dir", "hydra.searchpath", "lr"),
]
VALUES = [
    *("plain", "smoke", "digits", "figure6", "figure1,figure9", "basic", "8,14", "a,b", "joblib"),
    *("~/x", "müller", "日本", "(a)", "a=b", "[8,14]", "{a:1}", "pkg://os", "'a'", "out/x,y"),
]
FLAGS = [
    *("-m", "--multirun", "--help", "--cfg", "--cfg=job", "--cfg=x", "--resolve", "--package=x"),
    *("--config-dir", "--config-dir=absent", "--config-dir=.", "--extension", "--extension=a.py"),
    *("-c", "-cd", "-p", "-x", "--", "-", "--foo", "--hydra-help", "--info", "--run"),
]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Overrides of keys there are or not, with any values; flags; and any text at all."""
    value = st.sampled_from(VALUES) | nonsense
    override = st.builds(
        "{}{}={}".format, st.sampled_from(PREFIXES), st.sampled_from(KEYS) | text, value
    )
    word = st.one_of(override, override, override, st.sampled_from(FLAGS), text)
    return draw(st.lists(word, min_size=1, max_size=4))


@pytest.fixture(scope="module")
def _nothing_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("words"))
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        patch.setattr(sweep, "train_one", lambda config, place="": None)
        patch.setattr(composition, "run_sweep", lambda words, job: None)
        patch.setattr(study, "run_study", lambda plan, train: (0, 0))
        patch.setattr("resrepro.paper.artefacts.make_artefacts", lambda *arguments: iter(()))
        patch.setattr("resrepro.data.load", lambda data: data.name)
        patch.setattr(speed, "bench", lambda runs, settings, folder: [])
        patch.setattr(speed, "table", lambda speeds: "")
        yield


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize("command", cli.COMMANDS)
@settings(
    max_examples=survival.thorough(5, 300),
    derandomize=not survival.SOAK,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(words=command_lines())
def test_any_words_run_or_are_refused_with_a_line(command: str, words: list[str]) -> None:
    check(command, words)


def check(command: str, words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([command, *words])
    lines = err.getvalue().splitlines()
    if status == 0:
        assert lines == []
    else:
        assert status in (1, 2)
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"resrepro {command}: ")
        assert len(lines[0]) > len(f"resrepro {command}: ") + 5


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize("value", NONSENSE)
def test_any_folder_is_one(value: str) -> None:
    if value.strip(" \t\n\u00a0") not in ("", "null") and "${" not in value:
        check("train", ["data=digits", f"outputs={value}"])


# Paths are taken as they are


PATHS = [
    "out/müller",
    "日本",
    "(a) b",
    "a=b",
    "[x",
    "a,b",
    "1_000",
    "1e5",
    "true",
    "a\\",
    'a"b',
    "x'",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_is(path: str) -> None:
    (composed,) = composition.compose("train", ["data=digits", f"outputs={path}"])
    assert composed.outputs == path
    (composed,) = composition.compose("construct", [f"run={path.replace(',', '')}"])
    assert composed.run == path.replace(",", "")
    quoted = [f"outputs='{path}'", f'outputs="{path}"'][("'" in path) : 1 + ('"' not in path)]
    for word in quoted if "\\" not in path else []:  # as Hydra has always taken it
        assert composition.compose("train", [word])[0].outputs == path


def test_home_is_home() -> None:
    words = ["data=image_folder", "data.root=~/x", "outputs=~/y"]
    (composed,) = composition.compose("train", words)
    assert composed.data.root == str(Path.home() / "x")
    assert composed.outputs == str(Path.home() / "y")


def test_commas_part_paths_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c,d").mkdir()
    parted = composition.compose("train", ["-m", "outputs=a,(b)"])
    assert [one.outputs for one in parted] == ["a", "(b)"]
    (whole,) = composition.compose("train", ["-m", "outputs=c,d"])
    assert whole.outputs == "c,d"
    runs = composition.compose("evaluate", ["run=a,b", "run=c,d", "run=e"])
    assert [one.run for one in runs] == ["a", "b", "c,d", "e"]


# Commas, wherever several make sense


Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["plot", "figure=figure1,figure6", "experiment=a,b"], [("a", ["figure1", "figure6"])]),
        (["plot", "figure=[figure1,figure6]", "experiment=a,b"], [("a", ["figure1", "figure6"])]),
        (["report", "experiment=a,b"], [("a", ["report"])]),
    ],
)
def test_several_experiments_and_figures(
    words: list[str], what: Any, resrepro_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(outputs: str, experiment: str, artefacts: list[str]) -> Iterator[str]:
        made.append((experiment, artefacts))
        return iter(())

    monkeypatch.setattr("resrepro.paper.artefacts.make_artefacts", make)
    assert resrepro_here(*words).status == 0
    assert made == [*what, *(("b", names) for _, names in what)]


def test_several_studies_and_sizes(resrepro_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(study, "run_study", lambda plan, train: (0, ran.append(plan.name) or 0))
    monkeypatch.setattr("resrepro.paper.artefacts.make_artefacts", lambda *arguments: iter(()))
    assert resrepro_here("reproduce", "study=smoke,digits").status == 0
    assert ran == ["smoke", "digits"]
    monkeypatch.setattr(speed, "bench", lambda runs, settings, folder: [settings, len(runs)])
    monkeypatch.setattr(speed, "table", ran.append)
    words = ("image_size=8,16", "depth=8,14", "data=digits")
    assert resrepro_here("bench", *words).status == 0
    assert ran[-1] == [speed.Settings([8, 16], 5, 2, True), 2]


# Files of one's own


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"name: [broken\n iterations: {\n", r"bad\.yaml: is no YAML: .* in line \d$"),
        (b"\tname: tab\n", r"bad\.yaml: is no YAML: .* in line 1$"),
        (b"\xff\xfe\x00x", r"bad\.yaml: is no YAML: "),
        (b"just words", r"recipe\.just words: there is no such key"),
        (b"- a\n- b\n", r"recipe"),
        (b"", r"recipe\.name is not given$"),
        (b"name: x\niteratoins: 3\n", r"recipe\.iteratoins: .*did you mean recipe\.iterations\?$"),
        (b"defaults: [absent]\n", r"recipe=absent: there is no such recipe"),
    ],
)
def test_a_broken_file_is_named(
    content: bytes, line: str, resrepro_here: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine/recipe").mkdir(parents=True)
    (tmp_path / "mine/recipe/bad.yaml").write_bytes(content)
    words = ["--config-dir", "mine", "recipe=bad", "data=digits"]
    done = resrepro_here("train", *words)
    assert done.status == 2
    assert re.search(line, done.error), done.error
