"""One build at a time on an output folder."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.monitoring.process import began, is_gone, this_machine
from shards import bucket
from shards.bucket import ObjectTag, Url, VersionedObject
from shards.errors import PretrackError
from shards.files import TEMPORARY, Location

RENEW_EVERY_S = 30.0
EXPIRES_AFTER_S = 300.0
"""A lock on a bucket that was not renewed for so long belongs to a build that was killed, and is taken over."""


class Lock:
    """A lock that is held. One on a disk goes with its process alone; one on a bucket is taken from a build that seems dead."""

    lost = False

    def check(self) -> None:
        """Before what only one build may do. Raises PretrackError if another took the lock, OSError if the store does not say."""


@contextmanager
def build_lock(out: Location) -> Iterator[Lock]:
    """Holds an output folder's lock while the block runs; a killed process loses it, on a bucket after some minutes.

    Raises PretrackError if another build holds it, or if the folder cannot be written.
    """
    with (
        _locked_object(out / "build.lock")
        if isinstance(out, Url)
        else _locked_file(out / "build.lock") as lock
    ):
        yield lock


@contextmanager
def _locked_file(path: Path) -> Iterator[Lock]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_CREAT | os.O_WRONLY)
    except OSError as error:
        raise PretrackError(
            f"the output folder {path.parent} cannot be written ({error.strerror})"
        ) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PretrackError(
                f"another build is at work on {path.parent}: wait for it or stop it"
            ) from error
        yield Lock()
    finally:
        os.close(file)


@contextmanager
def _locked_object(url: Url) -> Iterator[Lock]:
    """The object is put only where none is, renewed by a thread, and deleted in the end."""
    try:
        lease = _Lease(url)
    except OSError as error:
        raise PretrackError(
            f"the output folder {url.parent} cannot be written ({error.strerror})"
        ) from error
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(lease, ended), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):  # a lock that stays ends by itself
            lease.give_back()


def _renew(lease: _Lease, ended: threading.Event) -> None:
    while not lease.lost and not ended.wait(RENEW_EVERY_S):
        with suppress(OSError):  # the next time may go better; long before it counts as dead
            lease.renew()


@dataclass(frozen=True)
class _Holder:
    """What a lock on a bucket says: who holds it. `token` is the lock's own, `renewed` how often it was: where an object's tag is
    its content's checksum, the tag would not change otherwise."""

    host: str = ""
    process: int = 0
    machine: str = ""
    started: str = ""
    token: str = ""
    renewed: int = 0

    @classmethod
    def me(cls) -> _Holder:
        """This process, with a new token."""
        return cls(
            socket.gethostname(),
            os.getpid(),
            this_machine(),
            began(os.getpid()),
            secrets.token_hex(16),
        )

    @classmethod
    def read(cls, data: bytes) -> _Holder:
        """The one that an object names, or nobody: an object that cannot be read ages as any other does."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return cls()

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" if self.host else "an unknown process"

    def data(self) -> bytes:
        """What the object holds."""
        return json.dumps(asdict(self)).encode()

    def gone(self) -> bool:
        """Whether it was a process of this very machine that is there no more."""
        return is_gone(self.process, self.machine, self.started)


class _Lease(Lock):
    """A lock on a bucket. Whether it is still ours its token says, since a write may succeed and its answer be lost."""

    def __init__(self, url: Url) -> None:
        self._url = url
        self._holder = _Holder.me()
        self._tag = self._taken()
        self._turn = threading.Lock()  # the thread renews it, and so does who checks it

    def check(self) -> None:
        self.renew()
        if self.lost:
            raise PretrackError(
                f"the lock {self._url} was taken by another build: this one stops, what is done is kept"
            )

    def renew(self) -> None:
        """Says that the holder lives. Sets `lost` if it is the holder no more. Raises OSError."""
        with self._turn:
            if self.lost:
                return
            self._holder = replace(self._holder, renewed=self._holder.renewed + 1)
            tag = self._written_over(self._tag)
            self.lost, self._tag = tag is None, tag or self._tag

    def give_back(self) -> None:
        """Deletes the object if it is ours. Raises OSError."""
        self.renew()  # nobody takes over one just renewed, so it is still ours when it is deleted
        if not self.lost:
            bucket.delete(self._url)

    def _taken(self) -> ObjectTag:
        """The tag of the lock, taken where there is none or a dead build's. Raises PretrackError where a build holds it."""
        if tag := bucket.create(self._url, self._holder.data()):
            return tag
        try:
            found = bucket.read_versioned(self._url)
        except FileNotFoundError:  # it was given back just now
            return self._taken()
        other = _Holder.read(found.data)
        if other.token == self._holder.token:  # it was created after all, and the answer was lost
            return found.tag
        age = self._age(found)
        if (other.gone() or age > EXPIRES_AFTER_S) and (tag := self._written_over(found.tag)):
            return tag
        raise PretrackError(
            f"another build is at work on {self._url.parent} ({other}, last heard of {age:.0f} s ago): "
            f"wait for it or stop it; a dead one's lock ends in {EXPIRES_AFTER_S / 60:.0f} minutes"
        )

    def _written_over(self, tag: ObjectTag) -> ObjectTag | None:
        """The tag after writing over the object that has this one; None if somebody else did meanwhile."""
        for _ in range(3):
            if new := bucket.replace(self._url, self._holder.data(), tag):
                return new
            try:
                found = bucket.read_versioned(self._url)
            except FileNotFoundError:
                return None
            if _Holder.read(found.data).token != self._holder.token:
                return None
            tag = found.tag  # we wrote it, and the answer was lost
        return tag

    def _age(self, found: VersionedObject) -> float:
        """Seconds since an object was written. By the store's clock, as this machine's may be wrong; a store tells its time only in
        the stamps of what is written, so something is."""
        probe = self._url.parent / f"{TEMPORARY}{self._holder.token}"
        bucket.write(probe, b"")
        try:
            return (bucket.written_at(probe) - found.written_at).total_seconds()
        finally:
            bucket.delete(probe)
