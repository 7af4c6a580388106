"""Lock an output folder, so that one build at a time writes there.

On a disk the lock is an `flock`, released when the process exits. On a bucket it is a lease: an
object that its holder renews and that another build may take over once it has expired.
"""

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

from pipeline.monitoring.process import has_exited, machine_id, start_time
from shards import bucket
from shards.bucket import ObjectTag, Url, VersionedObject
from shards.errors import PretrackError
from shards.files import TEMPORARY, Location

RENEW_EVERY_S = 30.0
EXPIRES_AFTER_S = 300.0
"""A lease that was not renewed for this long belongs to a build that was killed."""
_LOST_ANSWERS = 3
"""How often a write is checked and repeated when the store's answers get lost."""


class Lock:
    """A held lock: released when the process exits; on buckets, an expiring lease."""

    lost = False

    def check(self) -> None:
        """Verify that the lock is still held. Call it before anything that only one build may do.

        Raises PretrackError if another build took the lock over, OSError if the store fails.
        """


@contextmanager
def build_lock(out: Location) -> Iterator[Lock]:
    """Hold an output folder's lock while the block runs.

    A killed process loses the lock; on a bucket its lease expires after `EXPIRES_AFTER_S`.

    Raises PretrackError if another build holds the lock, or if the folder cannot be written.
    """
    with (
        _locked_object(out / "build.lock")
        if isinstance(out, Url)
        else _locked_file(out / "build.lock") as lock
    ):
        yield lock


@contextmanager
def _locked_file(path: Path) -> Iterator[Lock]:
    """Hold an exclusive `flock` on a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_CREAT | os.O_WRONLY)
    except OSError as error:
        raise PretrackError(
            f"the output folder {path.parent} cannot be written ({error.strerror})"
        ) from error
    try:
        try:
            # LOCK_NB: report the other build at once instead of waiting for its end.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PretrackError(
                f"another build is at work on {path.parent}: wait for it or stop it"
            ) from error
        yield Lock()
    finally:
        os.close(file)  # closing the file also releases its lock


@contextmanager
def _locked_object(url: Url) -> Iterator[Lock]:
    """Hold a lease: create the object, renew it in a thread, delete it when the block ends."""
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
        with suppress(OSError):  # a lease that cannot be deleted expires
            lease.release()


def _renew(lease: _Lease, ended: threading.Event) -> None:
    """Renew a lease until it is lost or the event is set."""
    while not lease.lost and not ended.wait(RENEW_EVERY_S):
        with suppress(OSError):  # several renewals may fail before the lease expires
            lease.renew()


@dataclass(frozen=True)
class _Holder:
    """The holder of a lease, as the object on the bucket names it.

    process, machine, started: identify the process (see `pipeline.monitoring.process`)
    token:   random, unique to this lease
    renewed: how often the lease was renewed. It makes every renewal's content differ: some stores'
             tags are checksums of the content, and would stay the same otherwise
    """

    host: str = ""
    process: int = 0
    machine: str = ""
    started: str = ""
    token: str = ""
    renewed: int = 0

    @classmethod
    def this_process(cls) -> _Holder:
        """Return this process as a holder, with a new token."""
        return cls(
            host=socket.gethostname(),
            process=os.getpid(),
            machine=machine_id(),
            started=start_time(os.getpid()),
            token=secrets.token_hex(16),
        )

    @classmethod
    def from_json(cls, data: bytes) -> _Holder:
        """Parse an object's content; damaged content is an unknown holder, and expires too."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return cls()

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" if self.host else "an unknown process"

    def to_json(self) -> bytes:
        """Return the object's content."""
        return json.dumps(asdict(self)).encode()

    def has_exited(self) -> bool:
        """Tell whether the holder was a process of this machine that has exited."""
        return has_exited(self.process, self.machine, self.started)


class _Lease(Lock):
    """A lease on a bucket.

    The token in the object decides whether the lease is still ours. The store's answer to a write
    does not suffice, since a write may succeed and its answer be lost.
    """

    def __init__(self, url: Url) -> None:
        self._url = url
        self._holder = _Holder.this_process()
        self._tag = self._acquire()
        self._renewing = threading.Lock()  # the renewing thread and `check` both renew

    def check(self) -> None:
        self.renew()
        if self.lost:
            raise PretrackError(
                f"the lock {self._url} was taken by another build: this build stops; finished "
                "shards are kept"
            )

    def renew(self) -> None:
        """Renew the lease, or set `lost` if another build took it over. Raises OSError."""
        with self._renewing:
            if self.lost:
                return
            self._holder = replace(self._holder, renewed=self._holder.renewed + 1)
            tag = self._overwrite(self._tag)
            self.lost, self._tag = tag is None, tag or self._tag

    def release(self) -> None:
        """Delete the object if the lease is still ours. Raises OSError."""
        self.renew()  # so that it cannot expire and be taken over before it is deleted
        if not self.lost:
            bucket.delete(self._url)

    def _acquire(self) -> ObjectTag:
        """Create the object, or take over an expired lease or one whose process has exited.

        Returns its tag. Raises PretrackError if another build holds the lease.
        """
        if tag := bucket.create(self._url, self._holder.to_json()):
            return tag
        try:
            current = bucket.read_versioned(self._url)
        except FileNotFoundError:  # its holder released it just now
            return self._acquire()
        holder = _Holder.from_json(current.data)
        if holder.token == self._holder.token:  # we did create it, and the answer was lost
            return current.tag
        # Both builds may see an expired lease, but only one overwrites it: the write requires the
        # tag that was read.
        age = self._age(current)
        expired = holder.has_exited() or age > EXPIRES_AFTER_S
        if expired and (tag := self._overwrite(current.tag)):
            return tag
        raise PretrackError(
            f"another build is at work on {self._url.parent} ({holder}, last heard of {age:.0f} s "
            "ago): wait for it or stop it; the lease of a killed build expires after "
            f"{EXPIRES_AFTER_S / 60:.0f} minutes"
        )

    def _overwrite(self, tag: ObjectTag) -> ObjectTag | None:
        """Replace the object with this tag; return the new tag, None if another build was first."""
        for _ in range(_LOST_ANSWERS):
            if new_tag := bucket.replace(self._url, self._holder.to_json(), tag):
                return new_tag
            try:
                current = bucket.read_versioned(self._url)
            except FileNotFoundError:
                return None
            if _Holder.from_json(current.data).token != self._holder.token:
                return None
            tag = current.tag  # we did write it, and the answer was lost
        return tag

    def _age(self, lease: VersionedObject) -> float:
        """Return the seconds since the object was last written, by the store's clock."""
        # This machine's clock may be wrong, and a store gives its time only in the time stamps of
        # objects: write an empty object, and read its stamp.
        probe = self._url.parent / f"{TEMPORARY}{self._holder.token}"
        bucket.write(probe, b"")
        try:
            return (bucket.written_at(probe) - lease.written_at).total_seconds()
        finally:
            bucket.delete(probe)
