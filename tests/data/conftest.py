import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import Behaviour, Host


@pytest.fixture(autouse=True)
def _loopback_without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def serve() -> Iterator[Callable[..., Host]]:
    """Starts hosts that serve some bytes, and closes them."""
    with contextlib.ExitStack() as stack:

        def start(content: bytes, **behaviour: Any) -> Host:
            host = Host(content, Behaviour(**behaviour))
            stack.callback(host.close)
            return host

        yield start


@pytest.fixture
def dead_url() -> Iterator[str]:
    """Where nobody listens: the port is taken, so nobody will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/cifar-10-binary.tar.gz"


@pytest.fixture
def start_command(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts the installed command; what still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: object) -> "subprocess.Popen[str]":
        command = Path(sys.executable).with_name("resrepro")
        process = subprocess.Popen(
            [command, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RESREPRO_DATA": str(tmp_path / "elsewhere")},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run_command(start_command: Callable[..., Any]) -> Callable[..., tuple[int, str, str]]:
    """Runs the installed command: its exit status, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        process = start_command(*words)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return run
