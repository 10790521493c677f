import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LISTED = set(PROJECT["tool"]["setuptools"]["packages"])


def packages(folder: Path, name: str, pattern: str) -> set[str]:
    """A folder, and all below it, that have files of a pattern, as dotted names."""
    folders = {file.parent for file in folder.rglob(pattern)}
    return {".".join([name, *path.relative_to(folder).parts]) for path in folders}


def test_every_folder_of_the_package_is_listed() -> None:
    expected = packages(ROOT / "src/resrepro", "resrepro", "*.py")
    configuration = packages(ROOT / "conf", "resrepro.conf", "__init__.py")
    assert configuration >= packages(ROOT / "conf", "resrepro.conf", "*.yaml")
    assert expected | configuration == LISTED


def test_the_wheel_holds_the_configuration_and_all_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = {
        f"resrepro/conf/{f.relative_to(ROOT / 'conf')}" for f in (ROOT / "conf").rglob("*.yaml")
    }
    assert {"resrepro/conf/train.yaml", "resrepro/conf/study/digits.yaml"} <= conf
    assert conf <= names
    code = {
        f"resrepro/{file.relative_to(ROOT / 'src/resrepro')}"
        for file in (ROOT / "src/resrepro").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"resrepro/cli.py", "resrepro/py.typed"} <= code
    assert code <= names
    assert not [name for name in names if name.startswith(("tests", "conf", "scripts"))]


def test_the_wheel_names_its_command_and_its_python(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    text = archive.read(metadata).decode()
    assert "Requires-Python: <3.14,>=3.11" in text
    assert "License-Expression: MIT" in text
    entry = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "resrepro = resrepro.cli:main" in entry


def test_an_installed_wheel_runs_anywhere(installed: Path, tmp_path: Path) -> None:
    code = (
        "import resrepro, resrepro.conf, sys\n"
        f"assert resrepro.__file__.startswith({str(installed)!r}), resrepro.__file__\n"
        f"assert resrepro.conf.__file__.startswith({str(installed)!r}), resrepro.conf.__file__\n"
        "from resrepro.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["train", "data=digits", "recipe=digits", "depth=8", "recipe.iterations=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "device=cpu", "threads=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "outputs/digits/residual-8-s0/checkpoint.pt").is_file()
