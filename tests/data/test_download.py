import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loopback import Host, Output, wait_until

from resrepro import interruption
from resrepro.data import download
from resrepro.data.download import fetch, file_digest
from resrepro.errors import Interrupted, ResreproError

CONTENT = np.random.default_rng(0).bytes(300_000)  # a few chunks, the last one not full
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])

Serve = Callable[..., Host]


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there" / "archive.tar.gz"


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)


def part_of(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.part")


def assert_fetched(destination: Path) -> None:
    assert destination.read_bytes() == CONTENT
    assert not part_of(destination).exists()


def leftovers(destination: Path) -> list[str]:
    """All that is not an empty lock."""
    files = destination.parent.iterdir()
    return [f.name for f in files if f.suffix != ".lock" or f.stat().st_size]


def fetch_in_another_process(url: str, destination: Path) -> "subprocess.Popen[str]":
    program = (
        "import sys; from pathlib import Path; from resrepro.data.download import fetch;"
        "print('ready', flush=True); sys.stdin.readline();"
        "fetch([sys.argv[1]], Path(sys.argv[2]), sys.argv[3])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, url, str(destination), SHA256],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def go(*processes: "subprocess.Popen[str]") -> None:
    """Lets processes that have imported what they need begin."""
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def fetch_until_a_signal(host: Host, destination: Path, timer: threading.Timer) -> None:
    with interruption.watched():
        timer.start()
        fetch([host.url], destination, SHA256)
        pytest.fail("the download went on")


def test_a_file_is_fetched_into_a_folder_that_was_not_there(
    serve: Serve, destination: Path
) -> None:
    host = serve(CONTENT)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    assert leftovers(destination) == [destination.name]
    assert host.ranges == [None]


def test_a_host_that_does_not_say_how_long_the_file_is(serve: Serve, destination: Path) -> None:
    fetch([serve(CONTENT, length=False).url], destination, SHA256)
    assert_fetched(destination)


def test_a_file_that_is_there_is_neither_fetched_nor_touched(serve: Serve, tmp_path: Path) -> None:
    host = serve(CONTENT)
    there = tmp_path / "archive.tar.gz"
    there.write_bytes(b"mine")
    fetch([host.url], there, SHA256)
    assert there.read_bytes() == b"mine"
    assert host.requests == []


def test_a_slow_host_is_waited_for_as_long_as_something_comes(
    serve: Serve, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.4)
    host = serve(CONTENT, piece=len(CONTENT) // 20, pause=0.05)
    began = time.monotonic()
    fetch([host.url], destination, SHA256)
    assert time.monotonic() - began > 2 * download.TIMEOUT
    assert_fetched(destination)
    assert len(host.requests) == 1


@pytest.mark.usefixtures("no_pause")
def test_a_broken_download_goes_on_where_it_broke_off(serve: Serve, destination: Path) -> None:
    host = serve(CONTENT, cut_after=HALF, times=1)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    assert host.ranges == [None, f"bytes={HALF}-"]
    assert host.sent == len(CONTENT)


@pytest.mark.usefixtures("no_pause")
def test_a_host_that_always_hangs_up_is_asked_as_long_as_that_brings_bytes(
    serve: Serve, destination: Path
) -> None:
    host = serve(CONTENT, cut_after=70_000)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    starts = range(70_000, len(CONTENT), 70_000)
    assert host.ranges == [None, *(f"bytes={start}-" for start in starts)]
    assert host.sent == len(CONTENT)


@pytest.mark.usefixtures("no_pause")
def test_a_host_that_falls_silent_is_asked_again_for_what_is_lacking(
    serve: Serve, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    host = serve(CONTENT, stall_after=HALF, times=1)
    began = time.monotonic()
    fetch([host.url], destination, SHA256)
    assert time.monotonic() - began < 5
    assert_fetched(destination)
    assert len(host.requests) == 2
    assert host.sent == len(CONTENT)  # no byte came twice


@pytest.mark.usefixtures("no_pause")
def test_a_little_that_came_before_a_host_fell_silent_is_kept(
    serve: Serve, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    host = serve(CONTENT, stall_after=10_000, times=1)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    assert host.ranges == [None, "bytes=10000-"]


@pytest.mark.usefixtures("no_pause")
def test_a_host_that_cannot_go_on_sends_all_of_it_again(serve: Serve, destination: Path) -> None:
    host = serve(CONTENT, ranges=False, cut_after=HALF, times=1)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    assert host.ranges == [None, f"bytes={HALF}-"]
    assert host.sent == HALF + len(CONTENT)


@pytest.mark.usefixtures("no_pause")
def test_a_host_that_always_breaks_off_at_the_same_place_is_given_up(
    serve: Serve, destination: Path
) -> None:
    bad = serve(CONTENT, ranges=False, cut_after=HALF)
    with pytest.raises(ResreproError, match=f"broke off after {HALF:,} of {len(CONTENT):,} bytes"):
        fetch([bad.url], destination, SHA256)
    assert len(bad.requests) == 2
    assert not destination.exists()


@pytest.mark.usefixtures("no_pause")
def test_another_mirror_goes_on_where_the_first_broke_off(serve: Serve, destination: Path) -> None:
    bad, good = serve(CONTENT, ranges=False, cut_after=HALF), serve(CONTENT)
    fetch([bad.url, good.url], destination, SHA256)
    assert_fetched(destination)
    assert good.ranges == [f"bytes={HALF}-"]


def test_what_an_earlier_call_left_is_gone_on_with(serve: Serve, destination: Path) -> None:
    destination.parent.mkdir(parents=True)
    part_of(destination).write_bytes(CONTENT[:1000])
    host = serve(CONTENT)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    assert host.sent == len(CONTENT) - 1000


def test_what_an_earlier_call_left_may_be_all_of_it(serve: Serve, destination: Path) -> None:
    destination.parent.mkdir(parents=True)
    part_of(destination).write_bytes(CONTENT)
    host = serve(CONTENT)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    assert host.sent == 0


@pytest.mark.parametrize("left", [WRONG, WRONG[::-1], WRONG + b"more", b"<html>sign in</html>"])
def test_what_was_left_and_is_not_of_this_file_is_fetched_anew(
    serve: Serve, destination: Path, left: bytes
) -> None:
    destination.parent.mkdir(parents=True)
    part_of(destination).write_bytes(left)
    fetch([serve(CONTENT).url], destination, SHA256)
    assert_fetched(destination)


@pytest.mark.usefixtures("no_pause")
def test_a_mirror_that_breaks_off_in_another_file_does_not_spoil_the_next(
    serve: Serve, destination: Path
) -> None:
    bad = serve(b"<html>sign in first</html>" * 1000, ranges=False, cut_after=100)
    fetch([bad.url, serve(CONTENT).url], destination, SHA256)
    assert_fetched(destination)


@pytest.mark.parametrize("wrong", [WRONG, b"", CONTENT[:HALF], CONTENT + b"\0"])
def test_a_file_of_another_digest_is_not_kept(
    serve: Serve, destination: Path, wrong: bytes
) -> None:
    host = serve(wrong)
    with pytest.raises(ResreproError, match=hashlib.sha256(wrong).hexdigest()[:12]):
        fetch([host.url], destination, SHA256)
    assert leftovers(destination) == []


BAD_MIRRORS: dict[str, dict[str, object]] = {
    "wrong content": {"content": WRONG},
    "not found": {"status": 404},
    "out of order": {"status": 500},
    "no range": {"status": 416},
    "no HTTP": {"nonsense": True},
    "hangs up at once": {"cut_after": 0},
    "silent": {"stall_after": 0},
}


@pytest.mark.parametrize("bad", list(BAD_MIRRORS.values()), ids=list(BAD_MIRRORS))
def test_the_next_mirror_is_tried(
    serve: Serve,
    destination: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: dict[str, object],
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    first, second = serve(**{"content": CONTENT} | bad), serve(CONTENT)
    fetch([first.url, second.url], destination, SHA256)
    assert_fetched(destination)
    assert len(first.requests) == 1
    assert second.ranges == [None]


@pytest.mark.parametrize(
    "url", ["dead", "ftp://127.0.0.1/x", "file:///etc/hostname", "http://", "x", "", "http://[1/x"]
)
def test_the_next_mirror_is_tried_where_there_is_no_host(
    serve: Serve, destination: Path, dead_url: str, url: str
) -> None:
    fetch([dead_url if url == "dead" else url, serve(CONTENT).url], destination, SHA256)
    assert_fetched(destination)


def test_the_error_says_of_every_mirror_what_was_wrong(
    serve: Serve, destination: Path, dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    hosts = [serve(CONTENT, status=404), serve(CONTENT, stall_after=0), serve(WRONG)]
    urls = [*(host.url for host in hosts), dead_url, "ftp://ftp.example.org/x"]
    with pytest.raises(ResreproError) as caught:
        fetch(urls, destination, SHA256)
    reasons = str(caught.value).split("; ")
    assert [reason.split(": ")[0] for reason in reasons] == ["127.0.0.1"] * 4 + ["ftp.example.org"]
    for reason, word in zip(
        reasons, ["not found", "timed out", "sha-256", "refused", "http"], strict=True
    ):
        assert word in reason.lower()
    assert "\n" not in str(caught.value)
    assert leftovers(destination) == []


def test_two_processes_at_once_fetch_once(serve: Serve, destination: Path) -> None:
    host = serve(CONTENT)
    host.open.clear()
    processes = [fetch_in_another_process(host.url, destination) for _ in range(2)]
    go(*processes)
    outputs = [Output(process) for process in processes]
    wait_until(lambda: any(output.text for output in outputs))
    host.open.set()
    assert [output.end() for output in outputs] == [(0, ""), (0, "")]
    waiting = "another process is fetching archive.tar.gz; waiting for it\n"
    assert sorted(output.text for output in outputs) == ["", waiting]
    assert_fetched(destination)
    assert host.ranges == [None]


def test_a_killed_process_blocks_nobody_and_its_part_is_gone_on_with(
    serve: Serve, destination: Path
) -> None:
    host = serve(CONTENT, piece=30_000, pause=0.05)
    process = fetch_in_another_process(host.url, destination)
    go(process)
    part = part_of(destination)
    wait_until(lambda: part.exists() and part.stat().st_size > 0)
    process.kill()
    process.communicate()
    got = part.stat().st_size
    assert 0 < got < len(CONTENT)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    assert host.ranges == [None, f"bytes={got}-"]


def test_a_signal_ends_a_download_that_drips_and_what_came_is_kept(
    serve: Serve, destination: Path
) -> None:
    host = serve(CONTENT, piece=200, pause=0.02)  # as good as endless
    timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGUSR1])
    began = time.monotonic()
    with pytest.raises(Interrupted):
        fetch_until_a_signal(host, destination, timer)
    assert time.monotonic() - began < 2
    assert part_of(destination).stat().st_size > 0
    host.behaviour.piece = len(CONTENT)
    fetch([host.url], destination, SHA256)
    assert_fetched(destination)
    assert host.ranges[1] is not None


def test_a_signal_ends_the_wait_for_another_process(serve: Serve, destination: Path) -> None:
    host = serve(CONTENT, stall_after=0)
    process = fetch_in_another_process(host.url, destination)
    go(process)
    wait_until(lambda: len(host.requests) == 1)
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGUSR1])
    with pytest.raises(Interrupted):
        fetch_until_a_signal(host, destination, timer)
    process.kill()
    process.communicate()
    assert len(host.requests) == 1


@pytest.mark.parametrize("content", [b"", b"abc", CONTENT])
def test_file_digest_is_the_sha_256(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
