"""Every command that README shows works in a fresh clone, in README's order."""

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from shutil import copy, copytree, ignore_patterns, which

import numpy as np
import pytest
import survival
from data.loopback import Behaviour, Host
from data.small_cifar import small_cifar10
from documents import ROOT
from PIL import Image

# Some twenty commands in fresh processes: minutes.
pytestmark = pytest.mark.skipif(not survival.SOAK, reason="takes minutes: scripts/soak")
README = (ROOT / "README.md").read_text()
SYSTEM = "/usr/local/bin:/usr/bin:/bin"  # a PATH without the resrepro that is tested

SHORTER = {
    "recipe/paper.yaml": {"iterations: 64000": "iterations: 1", "batch_size: 128": "batch_size: 4"},
    "recipe/digits.yaml": {"iterations: 300": "iterations: 1", "batch_size: 128": "batch_size: 8"},
    "model/plain.yaml": {"width: 16": "width: 4"},
    "model/residual.yaml": {"width: 16": "width: 4"},
    "study/digits.yaml": {"20,32,44,56": "20,56"},
    "study/figure6.yaml": {"20,32,44,56,110": "8", "artefacts: [": "artefacts: [table6] # ["},
    "study/table6.yaml": {
        "20,32,44,56": "8",
        "depth=110 seed=0,1,2,3,4": "depth=14",
        "artefacts: [": "artefacts: [table6] # [",
    },
    "bench.yaml": {"repeats: 5": "repeats: 1", "seconds: 2 ": "seconds: 0.1 "},
}


def shown() -> Iterator[str]:
    """The commands in README's sh blocks and in its text, each once, in order."""
    command = r"^```sh\n(.*?)^```|`((?:resrepro|scripts/\w+|source)(?: [^`]*)?)`"
    seen = {"scripts/test"}  # which is what runs this
    for match in re.finditer(command, README, re.MULTILINE | re.DOTALL):
        for line in match[1].splitlines() if match[1] else [" ".join(match[2].split())]:
            words = line.partition(" #")[0].strip()
            if words and words not in seen:
                seen.add(words)
                yield words


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone as scripts/setup leaves it, with shorter recipes and a CIFAR-10 of 120 images."""
    clone = tmp_path_factory.mktemp("readme") / "clone"
    copytree(ROOT, clone, ignore=ignore_patterns(".*", "outputs", "results", "build", "*.egg-info"))
    for file, changes in SHORTER.items():
        text = (clone / "conf" / file).read_text()
        for there, shorter in changes.items():
            assert there in text
            text = text.replace(there, shorter)
        (clone / "conf" / file).write_text(text)
    set_up(clone)
    images_for(clone / "DIR")
    (clone / "MY_FOLDER/recipe").mkdir(parents=True)
    copy(clone / "conf/recipe/paper.yaml", clone / "MY_FOLDER/recipe/short.yaml")
    cifar = small_cifar10()
    host = Host(cifar.archive, Behaviour())
    settings = clone / "conf/data/cifar10.yaml"
    text = re.sub(r"- https://\S+", f"- {host.url}", settings.read_text())
    settings.write_text(re.sub(r"sha256: \w+", f"sha256: {cifar.sha256}", text))
    yield clone
    host.close()


def set_up(clone: Path) -> None:
    """What scripts/setup does, but with the packages that the tests run with."""
    venv.create(clone / ".venv", symlinks=True)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site,) = (clone / ".venv").glob("lib/python3.*/site-packages")
    (site / "clone.pth").write_text("\n".join([str(clone / "src"), *packages]))
    (clone / "src/resrepro/conf").symlink_to(clone / "conf")
    command = clone / ".venv/bin/resrepro"
    command.write_text(
        f"#!{clone}/.venv/bin/python\nimport sys\nfrom resrepro.cli import main\n"
        "if __name__ == '__main__':\n    sys.exit(main())\n"
    )
    command.chmod(0o755)
    (clone / ".venv/bin/pip").symlink_to("/bin/true")
    state = [(clone / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    (clone / ".venv/.installed").write_text("".join([*state, f"{clone.resolve()}\n"]))


def images_for(root: Path) -> None:
    """A folder of two classes of images."""
    chance = np.random.default_rng(0)
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (root / name).mkdir(parents=True)
        Image.fromarray(chance.integers(0, 256, (40, 40, 3), np.uint8)).save(root / name / "0.png")


def test_every_command_works_as_written(clone: Path) -> None:
    """All of them in one shell, unchanged, from `scripts/quickstart` on.

    What is shortened lies in the clone's conf/ (`SHORTER`), and not in the commands: recipes of an
    iteration of few images, nets a quarter as wide, studies of fewer and shallower nets, those on
    CIFAR-10 with their table alone, `bench` for a tenth of a second. CIFAR-10 is a made-up archive
    on the loopback interface, DIR and MY_FOLDER are there, and `pip` does nothing: what it would
    install is there. `scripts/test` is not run, which runs this test.
    """
    assert which("resrepro", path=SYSTEM) is None
    commands = list(shown())
    assert len(commands) >= 18
    assert commands[0] == "scripts/quickstart"
    env = os.environ | {
        "PATH": SYSTEM,
        "HOME": str(clone.parent),
        "RESREPRO_DATA": str(clone.parent / "data"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    env.pop("HYDRA_FULL_ERROR", None)
    done = subprocess.run(
        ["bash", "-ex", "-c", "\n".join(f"time {c}" for c in commands)],
        cwd=clone,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    made = clone / "outputs"
    for figure in re.findall(r"^outputs/\S+$", README, re.MULTILINE):
        assert (clone / figure).is_file(), figure
    assert (made / "figure6/tables/table6.md").is_file()
    assert (made / "cifar10/residual-56-s0-lr0.05/checkpoint.pt").is_file()
    everything = {file.name for run in made.glob("*/*-s[0-9]*") for file in run.iterdir()} | {
        entry.name
        for entry in (made / "digits").iterdir()
        if not entry.name.startswith(("plain-", "residual-"))
    }
    listed = README[README.index("## What a run leaves behind") :]
    unlisted = {name for name in everything if f"`{name}" not in listed}
    assert not unlisted


def test_the_part_of_the_tests_that_contributing_runs_is_there() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    file, word = re.search(r"`scripts/test (\S+) -k (\w+)`", contributing).groups()  # type: ignore[union-attr]
    assert re.search(rf"def test_\w*{word}", (ROOT / file).read_text())
