"""Signals that ask the program to stop, noticed where stopping is safe.

A handler that saves files itself fails now and then, in the middle of whatever it interrupted.
Here it only remembers the signal; long loops call `check`, and the one that owns a run saves it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from resrepro.errors import Interrupted

_received: int | None = None


def check() -> None:
    """Raises Interrupted if a signal has come."""
    if _received is not None:
        raise Interrupted(_received)


@contextmanager
def noted() -> Iterator[None]:
    """Within the block SIGINT raises KeyboardInterrupt, as ever, and is remembered as well.

    Imports now and then swallow the exception; `watched` then raises what was remembered.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _received  # noqa: PLW0603
    _received = None
    before = signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _received = None


def _note(number: int, _frame: FrameType | None) -> None:
    global _received  # noqa: PLW0603
    _received = number
    raise KeyboardInterrupt


@contextmanager
def watched() -> Iterator[None]:
    """Within the block the first SIGINT, SIGTERM or SIGUSR1 is remembered, a second kills.

    One that came too late for the block is raised at its end: what follows must not begin.
    Outside the main thread, where Python takes no handlers, signals stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _received  # noqa: PLW0603 (signals belong to the process, and so does this)
    check()  # one that came before
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, _remember) for number in numbers}
    try:
        yield
        check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None


def _remember(number: int, _frame: FrameType | None) -> None:
    global _received  # noqa: PLW0603
    # To a study's process a second one is the first once more: Ctrl-C reaches all processes of
    # a terminal, and the study passes it on.
    is_child = multiprocessing.parent_process() is not None
    if _received is not None and not is_child:
        os._exit(128 + number)
    _received = number
    if not is_child:
        os.write(2, b"\nstopping and saving; once more stops at once\n")
