"""Cache of remote shards' members on a local disk, limited in size.

Several processes and runs can share a folder.
"""

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
"""Each process evicts down to FULL of the limit whenever it has written SHARE of the limit. So up
to eight processes, which write at most 8 / 64 = 1 - FULL in between, stay below the limit."""
_DIGEST_BYTES = 8


class MemberCache:
    """One file per member, followed by the member's digest; evicts the least recently used.

    Files are written atomically, and a corrupt one is fetched again. A file's modification time is
    when it was last used. If the disk cannot be written, one warning is logged and reading
    continues without caching.

    gb: largest size of the folder, in 10^9 bytes
    """

    def __init__(self, folder: Path, gb: float) -> None:
        self.folder, self.limit = folder.expanduser().absolute(), int(gb * 1e9)
        # Bytes written since the last eviction. Starting at the limit makes the first write evict
        # files of earlier runs.
        self._written = self.limit
        self._cannot_write = False

    def read(self, shard: Location, offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """Read members as `shards.reader.read_members` does, through the cache if it is remote.

        Raises ShardError.
        """
        if not isinstance(shard, Url):
            return read_members(shard, offsets, sizes)
        paths = [
            self._path(shard, offset, size) for offset, size in zip(offsets, sizes, strict=True)
        ]
        members = [self._cached(path, size) for path, size in zip(paths, sizes, strict=True)]
        missing = [i for i, member in enumerate(members) if member is None]
        if missing:
            fetched = read_members(
                shard, [offsets[i] for i in missing], [sizes[i] for i in missing]
            )
            for i, member in zip(missing, fetched, strict=True):
                members[i] = member
                self._store(paths[i], member)
        return [member for member in members if member is not None]

    def _path(self, shard: Url, offset: int, size: int) -> Path:
        name = xxhash.xxh3_128(f"{shard} {offset} {size}".encode()).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _cached(self, path: Path, size: int) -> bytes | None:
        """Return a member, or None if it is not cached or its file is corrupt."""
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:  # never cached, or just evicted by another process
            return None
        member, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        return member if len(member) == size and xxhash.xxh3_64(member).digest() == digest else None

    def _store(self, path: Path, member: bytes) -> None:
        """Write a member atomically, after an eviction if one is due."""
        # A member larger than SHARE would break the accounting behind FULL.
        if self._cannot_write or len(member) > self.limit * SHARE:
            return
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._written += len(member)
            if self._written > self.limit * SHARE:
                self._written = len(member)
                self._evict()
            temporary.write_bytes(member + xxhash.xxh3_64(member).digest())
            temporary.rename(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._cannot_write = True
            logger.warning(
                "%s cannot be written (%s): continuing without the cache",
                self.folder,
                error.strerror,
            )

    def _evict(self) -> None:
        """Delete the least recently used files until the folder is FULL.

        One process at a time: the others wait, since they could exceed the limit if they wrote on.
        """
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
