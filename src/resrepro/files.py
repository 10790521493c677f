"""Files that are either whole or not there, and locks."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from resrepro import interruption
from resrepro.errors import ResreproError

# What a file system answers that has no such thing.
NOT_SUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK}

# How a mount says that its locks are this host's alone (NFS, Lustre).
LOCAL_LOCKS = {"nolock", "local_lock=flock", "local_lock=all", "localflock"}


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, finds the old one or the new one whole.

    Of several processes that write it at once, on whatever hosts, the last one's stays.

    Raises:
        OSError: the disk is full, read-only, over quota …; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
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
    """Makes a rename in a directory last through a power cut, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # CIFS and some of FUSE cannot
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


def acquire(path: Path, timeout: float) -> FileLock:
    """Takes the lock at `path`: the system's own (flock), which dies with its process.

    Args:
        path: the lock's file, in a folder that is there.
        timeout: seconds to wait for it.

    Raises:
        Timeout: another process has it.
        ResreproError: the file system has no such locks.
    """
    # In place of flock filelock would use a file's existence, which outlives its process.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout, poll_interval=0.02)
    except OSError as error:
        if error.errno in NOT_SUPPORTED:
            raise ResreproError(
                f"{path.parent} lies on a file system without locks (flock: {error.strerror}), and "
                "two processes could write there at once; choose a folder on another, or mount "
                "this one with locks (Lustre: -o flock; NFS: with its lock service)"
            ) from error
        raise
    return lock


def lock_option(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The mount option by which other hosts do not see locks at `path`; mostly empty."""
    try:
        lines = [line.split(" ") for line in mounts.read_text().splitlines()]
    except OSError:  # not Linux
        return ""
    there = path.resolve()
    points = {point.replace("\\040", " "): options for _, point, _, options, *_ in lines}
    point = max((point for point in points if there.is_relative_to(point)), key=len, default="")
    return next((o for o in points.get(point, "").split(",") if o in LOCAL_LOCKS), "")


@contextlib.contextmanager
def one_at_a_time(path: Path, waiting: str) -> Iterator[None]:
    """Holds the lock at `path`, waiting for it as long as it takes; Ctrl-C ends the wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = None
    with contextlib.suppress(Timeout):
        lock = acquire(path, timeout=0)
    if lock is None:
        print(waiting, flush=True)
    while lock is None:
        interruption.check()
        with contextlib.suppress(Timeout):
            lock = acquire(path, timeout=0.5)
    try:
        yield
    finally:
        lock.release()
