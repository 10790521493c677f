"""Fetching one large file from slow and unsteady hosts."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from resrepro import __version__, interruption
from resrepro.errors import ResreproError
from resrepro.files import one_at_a_time
from resrepro.progress import bar

TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 16


def fetch(urls: list[str], destination: Path, sha256: str) -> None:
    """Downloads a file from the first mirror that gives it, and checks its digest.

    What arrives is kept in <destination>.part and gone on with after a break, also by a later
    call; `destination` itself appears whole and verified, or not at all. Processes that start
    together download once: the others wait.

    Raises:
        ResreproError: no mirror gave the file; the message says why, mirror by mirror.
    """
    lock = destination.with_name(f"{destination.name}.lock")
    with one_at_a_time(lock, f"another process is fetching {destination.name}; waiting for it"):
        if destination.exists():
            return
        part = destination.with_name(f"{destination.name}.part")
        reasons = []
        for url in urls:
            try:
                digest = _download_whole(url, part, sha256)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reasons.append(f"{_host(url)}: {_why(error)}")
                continue
            if digest == sha256:
                part.replace(destination)
                return
            reasons.append(f"{_host(url)}: gave a file of SHA-256 {digest[:12]}…")
        raise ResreproError("; ".join(reasons))


def _download_whole(url: str, part: Path, sha256: str) -> str:
    """Completes `part`; one that turns out wrong is fetched anew if it had begun elsewhere.

    Returns:
        The digest of what came. A wrong file is removed.
    """
    had_begun = part.exists()
    _download(url, part)
    digest = file_digest(part)
    if digest != sha256:
        part.unlink()
        if had_begun:
            return _download_whole(url, part, sha256)
    return digest


def file_digest(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path) -> None:
    """Appends to `part` what it lacks; tries again as long as that brings new bytes."""
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _download_once(url, part)
        except (OSError, http.client.HTTPException):
            if not part.exists() or part.stat().st_size <= before:
                raise
            time.sleep(1)
        else:
            return


def _download_once(url: str, part: Path) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"resrepro/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if not url.startswith(("http://", "https://")):
        raise ValueError("only http and https are fetched")
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (checked above)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # there is no more: the digest tells whether what we have is right
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the host sends it all again
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        name = part.name.removesuffix(".part")
        with (
            part.open("ab" if start else "wb") as file,
            bar(total, name, "B", unit_scale=True, initial=start) as progress,
        ):
            while chunk := response.read1(CHUNK):  # what there is, lest a time-out lose it
                interruption.check()
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"broke off after {part.stat().st_size:,} of {total:,} bytes")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or url
    except ValueError:
        return url


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason).strip().rstrip(".")
