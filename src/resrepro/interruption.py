"""Signals that ask the program to stop, noticed where stopping is safe.

A handler that saves files itself fails now and then, in the middle of whatever it interrupted.
Here it only remembers the signal; long loops call `check`, and the one that owns a run saves it.
"""

import math
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from resrepro.errors import Interrupted

# Ctrl-C, a scheduler's or the system's wish, SLURM's warnings (of submitit's jobs the second),
# a closed terminal.
WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
AGAIN_SECONDS = 1.0  # a Ctrl-C so soon after the first is the same one, held down or forwarded

_received: int | None = None
_pressed_at: float | None = None  # Ctrl-C, for the first time


def check() -> None:
    """Raises Interrupted if a signal has come."""
    if _received is not None:
        raise Interrupted(_received)


def is_requested() -> bool:
    """Whether a signal has come."""
    return _received is not None


@contextmanager
def noted(is_program: bool = False) -> Iterator[None]:
    """Within the block SIGINT raises KeyboardInterrupt, as ever, and is remembered as well.

    Imports now and then swallow the exception; `watched` then raises what was remembered. A
    second one within `AGAIN_SECONDS` is the same, and must not break into what the first began.

    Args:
        is_program: whether nothing follows but the end of the program, which a late Ctrl-C is
            then not to disturb.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _forget()
    before = signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if is_program else before)
        _forget()


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block SIGINT waits; processes that are started there never see it.

    Ctrl-C reaches all processes of a terminal. Those of a study are told by the study.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _note(number: int, _frame: FrameType | None) -> None:
    is_same = _pressed_at is not None and time.monotonic() - _pressed_at < AGAIN_SECONDS
    _remember(number)
    if not is_same:
        raise KeyboardInterrupt


@contextmanager
def watched() -> Iterator[None]:
    """Within the block the signals in `WATCHED` are remembered; a second Ctrl-C ends at once.

    Other signals may come again, as schedulers send them: the first is being obeyed. One that
    came too late for the block is raised at its end: what follows must not begin. SIGHUP stays
    ignored where it was (nohup). Outside the main thread, where Python takes no handlers, all
    stay as they are.
    """
    global _received  # noqa: PLW0603 (signals belong to the process, and so does this)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    check()  # one that came before
    _forget()
    wanted = set(WATCHED)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        wanted.remove(signal.SIGHUP)
    before = {number: signal.signal(number, _stop) for number in wanted}
    try:
        yield
        check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = None  # when Ctrl-C was pressed stays known: held down, it comes again


def _forget() -> None:
    global _received, _pressed_at  # noqa: PLW0603 (signals belong to the process, and so do these)
    _received = _pressed_at = None


def _remember(number: int) -> None:
    global _received, _pressed_at  # noqa: PLW0603
    _received = _received or number
    if number == signal.SIGINT and _pressed_at is None:
        _pressed_at = time.monotonic()


def _stop(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        _let_go_of_terminal()
    is_first, pressed_at = _received is None, _pressed_at
    _remember(number)
    # To a study's process every one is the first: a scheduler signals all processes of a job, and
    # the study passes it on.
    if multiprocessing.parent_process() is not None:
        return
    if is_first:
        with suppress(OSError):
            os.write(2, b"\nstopping and saving; Ctrl-C once more stops at once\n")
    elif number == signal.SIGINT and time.monotonic() - (pressed_at or math.inf) > AGAIN_SECONDS:
        os._exit(128 + number)


def _let_go_of_terminal() -> None:
    """Sends to nowhere what would be written to a terminal that is gone, where writing fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
