"""One build at a time on an output folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from shards import bucket
from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import Location

RENEWED_EVERY_S = 30.0
DEAD_AFTER_S = 300.0
"""A lock on a bucket that was not renewed for so long belongs to a build that was killed, and is taken over."""


@contextmanager
def only_build(out: Location) -> Iterator[None]:
    """Holds an output folder's lock while the block runs; a killed process loses it, on a bucket after some minutes.

    Raises PretrackError if another build holds it, or if the folder cannot be written.
    """
    with _locked_object(out / "build.lock") if isinstance(out, Url) else _locked_file(out / "build.lock"):
        yield


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_WRONLY)
    except OSError as error:
        raise PretrackError(f"the output folder {path.parent} cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PretrackError(f"another build is at work on {path.parent}: wait for it or stop it") from error
        yield
    finally:
        os.close(lock)


@contextmanager
def _locked_object(url: Url) -> Iterator[None]:
    """The object is put only where none is, renewed by a thread, and deleted in the end."""
    holder = json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode()
    try:
        tag = bucket.create(url, holder) or _take_over(url, holder)
    except OSError as error:
        raise PretrackError(f"the output folder {url.parent} cannot be written ({error.strerror})") from error
    ended = threading.Event()

    def renew(tag: str | None) -> None:
        while tag and not ended.wait(RENEWED_EVERY_S):
            with suppress(OSError):  # the next time may go better; long before it counts as dead
                tag = bucket.replace(url, holder, tag)

    thread = threading.Thread(target=renew, args=(tag,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        bucket.delete(url)


def _take_over(url: Url, holder: bytes) -> str:
    """The lock of a build that is dead. Raises PretrackError if it is not, or if somebody else was faster."""
    found = bucket.read_stamped(url)
    other = json.loads(found.data)
    age = (datetime.now(UTC) - found.written).total_seconds()
    gone = other["host"] == socket.gethostname() and not Path(f"/proc/{other['process']}").exists()
    tag = bucket.replace(url, holder, found.tag) if gone or age > DEAD_AFTER_S else None
    if tag is None:
        raise PretrackError(
            f"another build is at work on {url.parent} (process {other['process']} on {other['host']}, "
            f"last heard of {age:.0f} s ago): wait for it or stop it; a dead one's lock ends in {DEAD_AFTER_S / 60:.0f} minutes"
        )
    return tag
