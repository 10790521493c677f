import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import resrepro.conf
from resrepro.cli import COMMANDS
from resrepro.configuration.composition import compose, expand, parse, split_words, words_of
from resrepro.configuration.schema import Config, from_mapping
from resrepro.errors import ConfigError
from resrepro.studies.plan import ARTEFACTS, OWN_KEYS, Plan, plan_study

CONF = Path(resrepro.conf.__file__).parent


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def one(*overrides: str, config_dir: str | None = None) -> Config:
    runs = expand("train", [list(overrides)], config_dir)
    assert len(runs) == 1
    return runs[0]


def from_words(*words: str) -> Config:
    (composed,) = compose("train", list(words))
    return from_mapping(composed)


def plan(*words: str) -> Plan:
    own, of_runs = split_words(list(words), OWN_KEYS)
    (composed,) = compose("reproduce", own)
    return plan_study(composed, of_runs, parse(own).config_dir)


def test_the_groups_are_those_that_are_composed_here() -> None:
    folders = sorted(f.name for f in CONF.iterdir() if f.is_dir() and list(f.glob("*.yaml")))
    assert folders == ["data", "model", "optimizer", "recipe", "study"]
    commands = sorted(file.stem for file in CONF.glob("*.yaml"))
    assert commands == sorted([*COMMANDS, "hydra"])


@pytest.mark.parametrize("recipe", options("recipe"))
@pytest.mark.parametrize("data", options("data"))
@pytest.mark.parametrize("model", options("model"))
def test_train_composes_with(model: str, data: str, recipe: str, tmp_path: Path) -> None:
    root = [f"data.root={tmp_path}"] if data == "image_folder" else []
    config = one(f"model={model}", f"data={data}", f"recipe={recipe}", *root)
    assert (config.model.name, config.data.name, config.recipe.name) == (model, data, recipe)
    assert config.directory == Path(f"outputs/{data}/{model}-20-s0")


@pytest.mark.parametrize("key", ["root", "archive"])
def test_a_sweep_over_places_of_data_is_not_taken_for_one_run(key: str, tmp_path: Path) -> None:
    """Two places may hold two data sets; only their digests would tell."""
    for name in ("A", "B"):
        (tmp_path / name).mkdir()
    data = "image_folder" if key == "root" else "cifar10"
    places = f"data.{key}={tmp_path}/A,{tmp_path}/B"
    with pytest.raises(
        ConfigError, match=rf"two runs would share .*data\.{key} .*A and .*B"
    ) as refused:
        expand("train", [[f"data={data}", places]], None)
    assert "train each by itself, with a tag=WORD of its own" in str(refused.value)


def test_by_default_it_is_the_papers_recipe() -> None:
    config = one("data=digits")
    recipe = config.recipe
    assert (config.model.name, config.model.shortcut, config.depth) == ("residual", "A", 20)
    assert (recipe.iterations, recipe.batch_size, recipe.learning_rate) == (64_000, 128, 0.1)
    assert (recipe.momentum, recipe.weight_decay, recipe.drops) == (0.9, 1e-4, [0.5, 0.75])
    assert (recipe.padding, recipe.flip) == (4, True)
    assert vars(recipe.warm_up) == {"depth": 110, "learning_rate": 0.01, "until_error": 80}
    assert (config.precision, config.compile, config.data.mean) == ("float32", False, "pixel")


def test_without_any_word_it_trains_on_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESREPRO_DATA", raising=False)
    assert one().data.root == "~/.cache/resrepro"
    assert one().data.name == "cifar10"
    monkeypatch.setenv("RESREPRO_DATA", "/data sets/here")
    assert one().data.root == "/data sets/here"
    assert one("data=cifar100").data.root == "/data sets/here"


STUDIES = {
    "figure1": [f"plain-{depth}-s0" for depth in (20, 56)],
    "figure6": [f"{m}-{d}-s0" for m in ("plain", "residual") for d in (20, 32, 44, 56, 110)],
    "table6": [f"residual-{depth}-s0" for depth in (20, 32, 44, 56)]
    + [f"residual-110-s{seed}" for seed in range(5)],
    "digits": [f"{m}-{d}-s0" for m in ("plain", "residual") for d in (20, 32, 44, 56)],
    "smoke": [f"{m}-{d}-s0" for m in ("plain", "residual") for d in (8, 14)],
}


def test_no_study_is_missing_here() -> None:
    assert options("study") == sorted(STUDIES)


@pytest.mark.parametrize(("study", "names"), STUDIES.items())
def test_a_study_is_made_of(study: str, names: list[str]) -> None:
    made = plan(f"study={study}")
    assert sorted(run.name for run in made.runs) == sorted(names)
    assert (made.name, made.experiment, made.outputs) == (study, study, "outputs")
    assert {run.data.name for run in made.runs} == {
        "digits" if study in ("digits", "smoke") else "cifar10"
    }
    assert set(made.artefacts) <= {*ARTEFACTS, "constructed"}
    assert "table6" in made.artefacts


def test_the_study_by_default_is_digits() -> None:
    assert plan().name == "digits"


def test_overrides_go_through_a_study_to_its_runs() -> None:
    made = plan("study=smoke", "seed=0,1", "recipe.iterations=4", "experiment=other", "jobs=3")
    assert len(made.runs) == 8
    assert {run.recipe.iterations for run in made.runs} == {4}
    assert {run.seed for run in made.runs} == {0, 1}
    assert (made.experiment, made.jobs) == ("other", 3)


def test_an_override_of_a_run_wins_over_the_studys_own() -> None:
    assert {run.depth for run in plan("study=smoke", "depth=20").runs} == {20}


def test_a_study_stays_in_one_experiment() -> None:
    with pytest.raises(ConfigError, match="one experiment"):
        plan("study=smoke", "experiment=a,b")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("plot", {"figure": "figure6", "outputs": "outputs", "experiment": None}),
        ("status", {"outputs": "outputs", "experiment": None}),
        ("report", {"outputs": "outputs", "experiment": None}),
        (
            "construct",
            {"run": None, "depth": None, "device": "auto", "recipe": {"iterations": 0}},
        ),
    ],
)
def test_the_other_commands_compose(command: str, expected: dict[str, object]) -> None:
    assert compose(command, []) == [expected]


@pytest.mark.parametrize("name", options("data"))
def test_data_composes_with(name: str) -> None:
    (composed,) = compose("data", [f"data={name}"])
    assert composed.data.name == name


# What cannot be composed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dpth=8"], "^dpth is no key of resrepro train; did you mean depth\\?"),
        (["recipe.iteration=8"], "did you mean recipe.iterations\\?"),
        (["+foo=1"], "foo"),
        (["recipe=foo"], "^recipe=foo: .*digits, paper$"),
        (["depth=8 9"], "^depth=8 9: must be a whole number$"),
        (["depth=[8"], "\\[8"),
        (["~depth"], "depth"),
    ],
)
def test_words_that_make_no_configuration_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_words("data=digits", *words)


def test_a_plain_net_with_a_shortcut_is_told_to_be_residual() -> None:
    with pytest.raises(ConfigError, match=r"model\.shortcut") as refused:
        from_words("data=digits", "model=plain", "model.shortcut=A")
    assert "did you mean model.shortcut" not in str(refused.value)


def test_composing_leaves_the_process_as_it_was() -> None:
    arguments, environment = list(sys.argv), dict(os.environ)
    for words in (["data=digits"], ["foo=1"]):
        for made in (from_words, one):
            with contextlib.suppress(ConfigError):
                made(*words)
        assert sys.argv == arguments
        assert dict(os.environ) == environment
        assert not GlobalHydra.instance().is_initialized()


# Sweeps


def test_commas_make_every_combination() -> None:
    runs = expand(
        "train", [["data=digits", "model=plain,residual", "depth=8,14", "seed=0,3"]], None
    )
    assert [run.name for run in runs] == [
        f"{m}-{d}-s{s}" for m in ("plain", "residual") for d in (8, 14) for s in (0, 3)
    ]


def test_the_same_run_twice_is_one_run() -> None:
    assert len(expand("train", [["data=digits", "seed=0,0"], ["data=digits"]], None)) == 1


def test_runs_that_would_share_a_directory_are_refused_with_advice() -> None:
    sweep = ["data=digits", "recipe.learning_rate=0.1,0.05"]
    with pytest.raises(ConfigError, match=r"outputs/digits/residual-20-s0 .*tag=") as refused:
        expand("train", [sweep], None)
    assert "'tag=learning_rate${recipe.learning_rate}'" in str(refused.value)
    runs = expand("train", [[*sweep, "tag=learning_rate${recipe.learning_rate}"]], None)
    assert [run.tag for run in runs] == ["learning_rate0.1", "learning_rate0.05"]


def test_a_sweep_with_one_wrong_run_is_refused_whole() -> None:
    with pytest.raises(ConfigError, match="depth=13"):
        expand("train", [["data=digits", "depth=8,13"]], None)


def test_words_of_a_study_may_be_quoted() -> None:
    assert words_of("a=1 'b=[1, 2]'") == ["a=1", "b=[1, 2]"]


# A folder of one's own


@pytest.fixture
def own(tmp_path: Path) -> str:
    files = {
        "model/wide.yaml": "name: residual\nwidth: 24\nshortcut: B\n",
        "recipe/short.yaml": "defaults: [digits]\nname: short\niterations: 7\n",
        "study/mine.yaml": (
            "name: mine\nruns: ['model=wide,plain depth=8']\n"
            "overrides: data=digits recipe=short\nartefacts: [figure6]\n"
        ),
    }
    for name, text in files.items():
        file = tmp_path / "own configs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return str(tmp_path / "own configs")


def test_a_folder_of_ones_own_adds_a_model_and_a_recipe(own: str) -> None:
    config = one("model=wide", "recipe=short", "data=digits", config_dir=own)
    assert (config.model.width, config.model.shortcut) == (24, "B")
    assert (config.recipe.iterations, config.recipe.learning_rate) == (7, 0.02)
    assert from_words("--config-dir", own, "model=wide", "data=digits").model.width == 24


def test_a_folder_of_ones_own_adds_a_study(own: str) -> None:
    made = plan("--config-dir", own, "study=mine", "seed=4")
    assert [run.name for run in made.runs] == ["residual-8-s4", "plain-8-s4"]
    assert [run.model.width for run in made.runs] == [24, 16]
    assert {run.recipe.iterations for run in made.runs} == {7}


def test_a_file_of_ones_own_does_not_stand_behind_one_of_the_same_name(tmp_path: Path) -> None:
    mine = tmp_path / "recipe/paper.yaml"
    mine.parent.mkdir()
    shutil.copy(CONF / "recipe/paper.yaml", mine)
    assert one("recipe=paper", "data=digits", config_dir=str(tmp_path)).recipe.iterations == 64000
    mine.write_text(mine.read_text().replace("64000", "777"))
    with pytest.raises(ConfigError, match=r"recipe/paper\.yaml: .*give yours another"):
        one("recipe=paper", "data=digits", config_dir=str(tmp_path))


def test_a_missing_folder_of_ones_own_is_named(tmp_path: Path) -> None:
    for words in (["--config-dir", f"{tmp_path}/absent"], [f"--config-dir={tmp_path}/absent"]):
        with pytest.raises(ConfigError, match="absent"):
            compose("train", words)
