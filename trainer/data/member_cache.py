"""Members of remote shards on a local disk, with a limit to its size; several processes and runs may share a folder."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import xxhash

from shards.bucket import Url
from shards.files import TEMPORARY, Location
from shards.reader import read_members

logger = logging.getLogger(__name__)

FULL, SHARE = 7 / 8, 1 / 64
"""Room is made until the folder is this full, by a process each time that it has written this share of the limit: so up to eight
processes keep it below the limit."""
_DIGEST = 8


class MemberCache:
    """One file a member, with its digest behind it. A file is whole or not there; one that went bad is fetched again.

    A file's time of change says when it was last used. A disk that cannot be written is said once, and reading goes on.
    """

    def __init__(self, folder: Path, gb: float) -> None:
        self.folder, self.limit = folder.expanduser().absolute(), int(gb * 1e9)
        self._written = self.limit  # the first write looks at what there is
        self._broken = False

    def read(self, shard: Location, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """`read_members`, but what is not here is fetched and kept. A shard on this machine is read as ever. Raises ShardError."""
        if not isinstance(shard, Url):
            return read_members(shard, offsets, sizes)
        paths = [
            self._path(shard, offset, size) for offset, size in zip(offsets, sizes, strict=True)
        ]
        members = [self._kept(path, size) for path, size in zip(paths, sizes, strict=True)]
        missing = [i for i, member in enumerate(members) if member is None]
        if missing:
            fetched = read_members(
                shard, [offsets[i] for i in missing], [sizes[i] for i in missing]
            )
            for i, member in zip(missing, fetched, strict=True):
                members[i] = member
                self._keep(paths[i], member)
        return [member for member in members if member is not None]

    def _path(self, shard: Url, offset: int, size: int) -> Path:
        name = xxhash.xxh3_128(f"{shard} {offset} {size}".encode()).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _kept(self, path: Path, size: int) -> bytes | None:
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:  # never kept, or another process has just made room
            return None
        member, digest = data[:-_DIGEST], data[-_DIGEST:]
        return member if len(member) == size and xxhash.xxh3_64(member).digest() == digest else None

    def _keep(self, path: Path, member: bytes) -> None:
        if self._broken or len(member) > self.limit * SHARE:
            return
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._written += len(member)
            if self._written > self.limit * SHARE:
                self._written = len(member)
                self._make_room()
            temporary.write_bytes(member + xxhash.xxh3_64(member).digest())
            temporary.rename(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._broken = True
            logger.warning(
                "%s cannot be written (%s): going on without keeping what is read",
                self.folder,
                error.strerror,
            )

    def _make_room(self) -> None:
        """Deletes what was not used for longest; one process at a time. The others wait: writing on, they could pass the limit."""
        with open(self.folder / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = []
            for folder in self.folder.iterdir():
                if folder.is_dir():
                    files += [
                        (s.st_mtime_ns, s.st_size, e.path)
                        for e in os.scandir(folder)
                        if (s := _stat(e))
                    ]
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self.limit * FULL:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:
        return None
