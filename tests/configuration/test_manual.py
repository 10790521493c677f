"""--help says what every key means, from the comment that stands behind it in its file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import resrepro.conf
from resrepro.cli import COMMANDS
from resrepro.configuration.composition import Composer
from resrepro.configuration.manual import comments, meanings
from resrepro.configuration.schema import flatten

CONF = Path(resrepro.conf.__file__).parent
GROUPS = ("data", "model", "optimizer", "recipe", "study")
OPTIONS = [file for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_a_command_means_something(command: str) -> None:
    said = yaml.safe_load((CONF / f"{command}.yaml").read_text())
    keys = flatten({key: said[key] for key in said if key not in ("defaults", "hydra")})
    about = meanings(command, {})
    assert {key for key in keys if len(about.get(key, "")) < 5} == set()


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_key_of_a_choice_means_something(file: Path) -> None:
    group = file.parent.name
    about = meanings("train", {group: file.stem})
    keys = flatten({group: yaml.safe_load(file.read_text())})
    assert {key for key in keys if len(about.get(key, "")) < 5} == set()


def test_a_files_own_meaning_comes_first_and_another_of_its_group_fills_in(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe/mine.yaml").write_text("padding: 2  # less of it\nflip: true\n")
    about = meanings("train", {"recipe": "mine"}, str(tmp_path))
    assert about["recipe.padding"] == "less of it"
    assert about["recipe.flip"] == "horizontal, half of the images"


def test_comments_are_told_from_values() -> None:
    text = "a: 'x # y'  # one\nb:  # two\n  c: [1, 2]  # three\n  d: z#z\ne:\n  - f  # no key's\n"
    assert comments(text) == {"a": "one", "b": "two", "b.c": "three"}


def test_help_knows_what_is_chosen(
    resrepro_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = resrepro_here("train", "--help", "data=image_folder", "data.root=~/x").stdout
    assert "data.root=" in text
    assert "the folder that holds train/<class>/ and test/<class>/" in text
    assert "data.archive" not in text
    for width in (40, 80, 300):
        monkeypatch.setenv("COLUMNS", str(width))
        with Composer() as composer:
            from resrepro.configuration.manual import manual

            lines = manual("train", composer.load_all("train", []), None).splitlines()
        of_keys = [line for line in lines if line.startswith(" " * 34)]
        assert of_keys
        assert max(map(len, of_keys)) <= max(60, width)
