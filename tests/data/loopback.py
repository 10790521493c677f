"""A host on the loopback interface that serves one file as well or as badly as it is told to.

And what it takes to watch the processes that ask it.
"""

import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE = 1 << 14


@dataclass
class Behaviour:
    """How a host answers. What is bad of it ends after `times` requests.

    Attributes:
        status: of an answer that gives no file.
        ranges: whether it knows the Range header.
        length: whether it says how long the file is.
        cut_after: bytes of the body after which it hangs up.
        stall_after: bytes of the body after which it falls silent, and the line stays open.
        nonsense: whether it answers something that is no HTTP.
        pause: seconds between two pieces.
        piece: bytes sent at once.
        times: requests after which it neither refuses, hangs up nor falls silent any more.
    """

    status: int = 200
    ranges: bool = True
    length: bool = True
    cut_after: int | None = None
    stall_after: int | None = None
    nonsense: bool = False
    pause: float = 0.0
    piece: int = PIECE
    times: float = float("inf")


@dataclass
class Asked:
    """A request as it came: the Range header, and how many bytes of the body were sent."""

    range: str | None
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    def __init__(self, host: "Host", *connection: Any) -> None:
        self.host = host
        super().__init__(*connection)

    def do_GET(self) -> None:
        host, behaviour = self.host, self.host.behaviour_now()
        asked = Asked(self.headers.get("Range"))
        host.requests.append(asked)
        host.open.wait()
        if behaviour.nonsense:
            self.wfile.write(b"220 an altogether different protocol\r\n")
            return
        if behaviour.status != 200:
            self.send_error(behaviour.status)
            return
        body, start = host.content, 0
        if asked.range and behaviour.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked.range)[1])  # type: ignore[index]
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if behaviour.length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.send_body(body[start:], behaviour, asked)

    def send_body(self, body: bytes, behaviour: Behaviour, asked: Asked) -> None:
        ends = [n for n in (behaviour.cut_after, behaviour.stall_after) if n is not None]
        end = min([*ends, len(body)])
        try:
            for at in range(0, end, behaviour.piece):
                piece = body[at : min(at + behaviour.piece, end)]
                asked.sent += len(piece)  # first: who reads the last piece may look at once
                self.wfile.write(piece)
                if behaviour.pause and self.host.closing.wait(behaviour.pause):
                    return
            if behaviour.stall_after is not None:
                self.host.closing.wait()
        except OSError:
            pass  # the other side hung up

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (it is called so)
        pass


@dataclass
class Host:
    """A running host.

    Attributes:
        requests: what was asked of it, in order.
        open: while this is cleared, answers wait.
    """

    content: bytes
    behaviour: Behaviour
    requests: list[Asked] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.open.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/cifar-10-binary.tar.gz"

    @property
    def sent(self) -> int:
        """Bytes of the file that were sent, over all requests."""
        return sum(asked.sent for asked in self.requests)

    @property
    def ranges(self) -> list[str | None]:
        return [asked.range for asked in self.requests]

    def behaviour_now(self) -> Behaviour:
        if len(self.requests) < self.behaviour.times:
            return self.behaviour
        return replace(self.behaviour, status=200, cut_after=None, stall_after=None, nonsense=False)

    def close(self) -> None:
        self.closing.set()
        self.open.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Output:
    """Reads what a process prints while it runs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.text = process, ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.text += line

    def end(self) -> tuple[int, str]:
        """Waits for the process: its exit status and standard error."""
        self._thread.join(60)
        status = self.process.wait(timeout=10)
        assert self.process.stderr
        return status, self.process.stderr.read()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, "this never came true"
        time.sleep(0.01)
