"""Where a run's numbers come from: versions, machine and source revision."""

import platform
import socket
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch

from resrepro import __version__


def provenance() -> dict[str, Any]:
    """What a reader needs in order to make the numbers again."""
    return {
        "versions": {
            "resrepro": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        },
        "git_revision": git_revision(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
    }


@cache
def git_revision() -> str | None:
    """The commit this code is, marked where it was changed since; None for an installed wheel."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
