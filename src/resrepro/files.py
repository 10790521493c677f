"""Files that are either whole or not there, and locks."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from resrepro import interruption


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, finds the old one or the new one whole.

    Raises:
        OSError: the disk is full, read-only, over quota …; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk has room for a last word then
        raise cannot_be_written(path, error) from error


def cannot_be_written(path: Path, error: OSError) -> OSError:
    """The same error, with the file it is about."""
    return OSError(error.errno, f"cannot be written: {error.strerror}", str(path))


def sync_directory(path: Path) -> None:
    """Makes a rename in a directory last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_at_a_time(path: Path, waiting: str) -> Iterator[None]:
    """Holds the lock at `path`, waiting for it as long as it takes; Ctrl-C ends the wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, flush=True)
        while not lock.is_locked:
            interruption.check()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0.5)
    try:
        yield
    finally:
        lock.release()
