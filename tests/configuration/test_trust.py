"""Neither a file in a run directory nor a configuration runs code of its own."""

import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import survival
import torch
import yaml
from survival import TINY, Fork, Moment, Nursery, one_line_only, outcome, unequal

from resrepro.configuration.composition import expand
from resrepro.configuration.schema import flatten
from resrepro.errors import ConfigError
from resrepro.runs.run_directory import RunDirectory

NAME = "residual-8-s0"


@pytest.fixture(scope="module")
def nursery() -> Nursery:
    return survival.the_nursery()


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def train_words(outputs: Path) -> list[str]:
    return ["train", *TINY, f"outputs={outputs}"]


@pytest.fixture
def half(nursery: Nursery, tmp_path: Path) -> Path:
    """A run that was interrupted, with a checkpoint."""
    moment = Moment("iteration", 30, signal=signal.SIGTERM)
    assert nursery.start(train_words(tmp_path), moment).wait() == 143
    return tmp_path / "digits" / NAME


def look_everywhere(nursery: Nursery, outputs: Path) -> Fork:
    """Has every command look at a run, the last of which trains it."""
    for words in (["status"], ["plot"], ["report", "experiment=digits"]):
        life = nursery.start([*words, f"outputs={outputs}"])
        life.wait()
        assert "Traceback" not in life.err
    run = outputs / "digits" / NAME
    assert nursery.start(["construct", f"run={run}", "depth=14"]).wait() in (1, 2)
    life = nursery.start(train_words(outputs))
    life.wait()
    return life


def seal(run: Path, mark: Path) -> None:
    """Writes a checkpoint that is whole in all but what it does when it is unpickled."""
    (config,) = expand("train", [[*TINY, f"outputs={run.parent.parent}"]], None)
    state = {"iteration": 30, "network": Hostile(mark), "rows": [], "momentum": []}
    RunDirectory(run).save_checkpoint(state, config)


def test_a_hostile_pickle_is_one(tmp_path: Path) -> None:
    """The tests below can fail: where PyTorch is told to trust it, it does its work."""
    torch.save(Hostile(tmp_path / "mark"), tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("both", [False, True])
def test_a_hostile_checkpoint_runs_nothing(
    nursery: Nursery, half: Path, tmp_path: Path, both: bool
) -> None:
    mark = tmp_path / "mark"
    seal(half, mark)
    if both:
        shutil.copy(half / "checkpoint.pt", half / "checkpoint.previous.pt")
    life = look_everywhere(nursery, tmp_path)
    assert not mark.exists()
    if both:
        assert life.wait() == 1
        assert one_line_only(life.err), life.err
        assert "no checkpoint can be used" in life.err
    else:
        assert life.wait() == 0, life.err
        assert "warning: checkpoint.pt" in life.out
        unbroken = tmp_path / "unbroken"
        assert nursery.start(train_words(unbroken)).wait() == 0
        assert unequal(half, outcome(unbroken / "digits" / NAME)) == []


def test_a_plain_hostile_pickle_runs_nothing(nursery: Nursery, half: Path, tmp_path: Path) -> None:
    for file in ("checkpoint.pt", "checkpoint.previous.pt"):
        torch.save(Hostile(tmp_path / "mark"), half / file)
    life = look_everywhere(nursery, tmp_path)
    assert life.wait() == 1
    assert one_line_only(life.err), life.err
    assert not (tmp_path / "mark").exists()


def test_a_hostile_config_yaml_runs_nothing(nursery: Nursery, half: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with (half / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.mkdir ['{mark}']\n")
    life = look_everywhere(nursery, tmp_path)
    assert life.wait() in (1, 2)
    assert one_line_only(life.err), life.err
    assert not mark.exists()


# Configurations. Hydra calls what `_target_` names in some places, and the logging module what
# `()` names; os.mkdir is none of what Hydra itself refuses to call.


def call(mark: Path) -> dict[str, Any]:
    return {"_target_": "os.mkdir", "path": str(mark)}


PLUGINS = "hydra._internal.core_plugins"
# A file of the user's folder, its content, and the word that chooses it.
FILES: dict[str, tuple[str, Callable[[Path], dict[str, Any]], str]] = {
    "a callback": (
        "hydra/callbacks/evil.yaml",
        lambda mark: {"evil": call(mark)},
        "hydra/callbacks=evil",
    ),
    "inside a launcher": (
        "hydra/launcher/evil.yaml",
        lambda mark: {
            "_target_": f"{PLUGINS}.basic_launcher.BasicLauncher",
            "evil": call(mark),
        },
        "hydra/launcher=evil",
    ),
    "inside a sweeper": (
        "hydra/sweeper/evil.yaml",
        lambda mark: {
            "_target_": f"{PLUGINS}.basic_sweeper.BasicSweeper",
            "max_batch_size": call(mark),
        },
        "hydra/sweeper=evil",
    ),
    "a log handler": (
        "hydra/job_logging/evil.yaml",
        lambda mark: {
            "version": 1,
            "handlers": {"evil": {"()": "os.mkdir", "path": str(mark)}},
            "root": {"handlers": ["evil"]},
        },
        "hydra/job_logging=evil",
    ),
    "a log handler's class": (
        "hydra/job_logging/evil.yaml",
        lambda mark: {
            "version": 1,
            "handlers": {"evil": {"class": "os.mkdir", "path": str(mark)}},
            "root": {"handlers": ["evil"]},
        },
        "hydra/job_logging=evil",
    ),
    "an import of a log handler's module": (
        "hydra/job_logging/evil.yaml",
        lambda mark: {
            "version": 1,
            "handlers": {"evil": {"class": "logging.os.mkdir", "path": str(mark)}},
            "root": {"handlers": ["evil"]},
        },
        "hydra/job_logging=evil",
    ),
    "an import of a launcher's module": (
        "hydra/launcher/evil.yaml",
        lambda mark: {"_target_": f"{PLUGINS}.basic_launcher.logging.os.mkdir", "path": str(mark)},
        "hydra/launcher=evil",
    ),
    "elsewhere, for a launcher": (
        "recipe/evil.yaml",
        lambda mark: {"evil": call(mark), "hydra": {"launcher": {"evil": "${recipe.evil}"}}},
        "recipe=evil",
    ),
    "a callback in a file of another group": (
        "recipe/evil.yaml",
        lambda mark: {"hydra": {"callbacks": {"evil": call(mark)}}},
        "recipe=evil",
    ),
    "a model": ("model/evil.yaml", call, "model=evil"),
    "a recipe": ("recipe/evil.yaml", call, "recipe=evil"),
    "data": ("data/evil.yaml", call, "data=evil"),
    "part of a recipe": (
        "recipe/evil.yaml",
        lambda mark: {"warm_up": call(mark)},
        "recipe=evil",
    ),
}


def check_nothing_ran(life: Fork, mark: Path) -> None:
    status = life.wait()
    assert not mark.exists(), "code of a configuration ran"
    if status != 0:  # a launcher is not asked for where one run is
        assert status == 2, life.err
        assert one_line_only(life.err), life.err


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("multirun", [False, True])
def test_a_users_folder_runs_nothing(
    nursery: Nursery, tmp_path: Path, what: str, multirun: bool
) -> None:
    name, content, word = FILES[what]
    mark, file = tmp_path / "mark", tmp_path / "conf" / name
    file.parent.mkdir(parents=True)
    package = "# @package _global_\n" if "hydra" in content(mark) else ""
    file.write_text(package + yaml.safe_dump(content(mark)))
    group = word.partition("=")[0]
    tiny = [other for other in TINY if not other.startswith((f"{group}=", f"{group}."))]
    words = ["-m"] if multirun else []
    words += ["--config-dir", str(tmp_path / "conf"), *tiny, word, f"outputs={tmp_path}/o"]
    check_nothing_ran(nursery.start(["train", *words], folder=tmp_path), mark)


# What a file of any group can say of Hydra's part: by each of these Hydra would import, call,
# write or set something.
HYDRAS = {
    "a file to write to": {
        "job_logging": {
            "version": 1,
            "formatters": {"f": {"format": "touch MARK"}},
            "handlers": {"f": {"class": "logging.FileHandler", "filename": "x", "mode": "w"}},
            "root": {"handlers": ["f"]},
        }
    },
    "the same for Hydra's log": {"hydra_logging": {"root": {"level": "DEBUG"}}},
    "a module to import": {"job_logging": {"stream": "ext://evil_module.stream"}},
    "a place to look for modules": {"searchpath": ["pkg://evil_module"]},
    "a variable": {"job": {"env_set": {"PATH": "/evil"}}},
    "a variable to copy": {"job": {"env_copy": ["HOME"]}},
    "a callback": {"callbacks": {"evil": {"_target_": "os.mkdir", "path": "x"}}},
    "a folder for the run": {"run": {"dir": "/evil"}},
    "a folder for the sweep": {"sweep": {"dir": "/evil"}},
    "files beside the run": {"output_subdir": "evil"},
    "another folder to be in": {"job": {"chdir": True}},
    "a mode": {"mode": "MULTIRUN"},
    "words that nobody said": {
        "overrides": {"task": ["+hydra.callbacks.evil={_target_:os.mkdir}"]}
    },
    "a sweeper's words": {"sweeper": {"params": {"+hydra.callbacks.evil": "{_target_:os.mkdir}"}}},
    "another sweeper": {"sweeper": {"_target_": "os.mkdir"}},
    "another launcher": {"launcher": {"_target_": "os.mkdir"}},
    "a setting of the launcher": {"launcher": {"setup": ["touch MARK"]}},
    "a launcher that is none": {"launcher": "evil"},
    "debugging": {"verbose": True},
    "help": {"help": {"header": "evil"}},
}


@pytest.mark.parametrize("what", HYDRAS)
def test_nothing_of_hydras_part_can_be_reached(what: str, tmp_path: Path) -> None:
    content = f"# @package _global_\n{yaml.safe_dump({'hydra': HYDRAS[what]})}"
    written(tmp_path / "recipe/evil.yaml", content)
    words = ["data=digits", "recipe=evil"]
    # Where the command's own files come after it and win, only a recipe with no keys is left;
    # what the plain launcher has no setting for Hydra refuses itself.
    refusal = r"^hydra\.|hydra\.searchpath|^recipe is not given$|BasicLauncherConf"
    with pytest.raises(ConfigError, match=refusal):
        expand("train", [words], str(tmp_path))
    key, value = next(iter(flatten(HYDRAS[what]).items()))
    if key not in ("launcher.setup", "sweeper._target_"):
        with pytest.raises(ConfigError, match=r"^\+*hydra"):
            expand("train", [["data=digits", f"++hydra.{key}='{value}'"]], None)


def written(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(content)


LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        ({"_target_": LAUNCHER, "partition": "long", "name": "${data.name}"}, None),
        ({"_target_": "os.mkdir"}, r"hydra\.launcher\._target_=os\.mkdir: is no installed"),
        ({"_target_": LAUNCHER, "x": {"_target_": "os.mkdir"}}, "plain values"),
        ({"_target_": LAUNCHER, "_partial_": True}, "plain values"),
        ({"_target_": LAUNCHER, "x": "${recipe}"}, "must be written out"),
        ({"_target_": LAUNCHER, "x": "${oc.create:{_target_:os.mkdir}}"}, "must be written out"),
        ({"_target_": LAUNCHER, "x": "${later}"}, "must be written out"),
    ],
)
def test_a_launcher_is_an_installed_one_with_plain_settings(
    content: dict[str, Any], refused: str | None, tmp_path: Path
) -> None:
    written(tmp_path / "hydra/launcher/mine.yaml", yaml.safe_dump(content))
    words = ["data=digits", "hydra/launcher=mine"]
    if refused is None:
        (run,) = expand("train", [words], str(tmp_path))
        assert run.data.name == "digits"
    else:
        with pytest.raises(ConfigError, match=refused):
            expand("train", [words], str(tmp_path))


@pytest.mark.parametrize(
    "word",
    [
        "+hydra.callbacks.evil={_target_:os.mkdir,path:MARK}",
        "+hydra.launcher.evil={_target_:os.mkdir,path:MARK}",
        "+hydra.sweeper.params={_target_:os.mkdir,path:MARK}",
        "+model.evil={_target_:os.mkdir,path:MARK}",
        "+recipe._target_=os.mkdir",
        "+_target_=os.mkdir",
    ],
)
@pytest.mark.parametrize("multirun", [False, True])
def test_an_override_runs_nothing(
    nursery: Nursery, tmp_path: Path, word: str, multirun: bool
) -> None:
    mark = tmp_path / "mark"
    words = ["-m"] if multirun else []
    words += [*TINY, f"outputs={tmp_path}/o", word.replace("MARK", str(mark))]
    check_nothing_ran(nursery.start(["train", *words], folder=tmp_path), mark)


@pytest.mark.parametrize(
    "command", ["status", "plot", "data data=digits", "reproduce study=smoke", "report"]
)
def test_no_command_runs_callbacks(nursery: Nursery, tmp_path: Path, command: str) -> None:
    mark = tmp_path / "mark"
    word = f"+hydra.callbacks.evil={{_target_:os.mkdir,path:{mark}}}"
    check_nothing_ran(nursery.start([*command.split(), word], folder=tmp_path), mark)


def test_a_study_runs_nothing(nursery: Nursery, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    study = tmp_path / "conf" / "study" / "evil.yaml"
    study.parent.mkdir(parents=True)
    words = f"depth=8 recipe.iterations=1 +hydra.callbacks.evil={{_target_:os.mkdir,path:{mark}}}"
    study.write_text(
        yaml.safe_dump(
            {"name": "evil", "runs": [words], "overrides": "data=digits", "artefacts": []}
        )
    )
    words_of_command = ["--config-dir", str(tmp_path / "conf"), "study=evil"]
    check_nothing_ran(nursery.start(["reproduce", *words_of_command], folder=tmp_path), mark)


def test_a_sweep_runs_nothing_of_its_later_jobs(nursery: Nursery, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "conf" / "model" / "evil.yaml"
    file.parent.mkdir(parents=True)
    handler = {"()": "os.mkdir", "path": str(mark)}
    logs = {"version": 1, "handlers": {"evil": handler}, "root": {"handlers": ["evil"]}}
    hidden = {"model": {"name": "plain"}, "hydra": {"job_logging": logs}}
    file.write_text(f"# @package _global_\n{yaml.safe_dump(hidden)}")
    words = ["-m", "--config-dir", str(tmp_path / "conf"), *TINY, "model=plain,evil"]
    words += ["seed=1", f"outputs={tmp_path}/o"]
    life = nursery.start(["train", *words], folder=tmp_path)
    assert life.wait() == 2
    check_nothing_ran(life, mark)


def test_a_pickled_job_is_not_run_again(nursery: Nursery, tmp_path: Path) -> None:
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(Hostile(tmp_path / "mark")))
    words = ["train", "--experimental-rerun", str(tmp_path / "job.pickle")]
    life = nursery.start(words, folder=tmp_path)
    assert life.wait() == 2
    check_nothing_ran(life, tmp_path / "mark")


def test_hydras_own_launchers_may_be_chosen(nursery: Nursery, tmp_path: Path) -> None:
    words = ["train", "-m", *TINY, f"outputs={tmp_path}", "recipe.iterations=1"]
    for more in (["hydra/launcher=basic"], ["hydra.sweeper.max_batch_size=1"], ["seed=1,2"]):
        life = nursery.start([*words, *more], folder=tmp_path)
        assert life.wait() == 0, life.err
