"""Writes a shard: a plain tar of clips, in one piece or not at all, telling where every member lies."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import xxhash

from shards.clip import ClipInfo, is_key
from shards.errors import ShardError
from shards.files import Location, open_atomic_as

_BLOCK = 512


@dataclass(frozen=True)
class ByteRange:
    """Where a member's bytes lie in the tar file."""

    offset: int
    size: int


@dataclass(frozen=True)
class ClipMembers:
    """Where the members of one clip lie, and the xxh3-64 digest (hex) of their bytes: description, tracks, then frames in order.

    `anchors` has the bytes of each anchor's part of the tracks, which follow one another.
    """

    info: ByteRange
    tracks: ByteRange
    anchors: tuple[int, ...]
    frames: tuple[ByteRange, ...]
    checksum: str

    @property
    def byte_ranges(self) -> tuple[ByteRange, ...]:
        """All of them, in their order."""
        return self.info, self.tracks, *self.frames

    def check(self, data: Iterable[bytes]) -> None:
        """Raises ShardError if these are not the bytes that were written."""
        if _checksum(data) != self.checksum:
            raise ShardError("its members' checksum does not fit")


class ShardWriter:
    """Appends clips to an open shard. Made by `open_shard`; the tar it makes is the same, byte for byte, for the same clips."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = xxhash.xxh3_64()
        self.size = 0

    @property
    def checksum(self) -> str:
        """The xxh3-64 digest (hex) of everything written so far; of the whole file once `open_shard` has closed it."""
        return self._digest.hexdigest()

    def add(
        self, info: ClipInfo, tracks: tuple[bytes, ...], jpegs: tuple[bytes, ...]
    ) -> ClipMembers:
        """Adds one clip: its description, its encoded tracks (a part an anchor), and one JPEG a frame."""
        if len(jpegs) != info.frames:
            raise ValueError(f"clip {info.key} has {info.frames} frames and {len(jpegs)} images")
        members = (info.to_json(), b"".join(tracks), *jpegs)
        spans = [self._member(name, data) for name, data in member_names(info.key, members)]
        return ClipMembers(
            spans[0], spans[1], tuple(map(len, tracks)), tuple(spans[2:]), _checksum(members)
        )

    def _member(self, name: str, data: bytes) -> ByteRange:
        header = tarfile.TarInfo(name)
        header.size, header.mode, header.mtime = len(data), 0o644, 0
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        span = ByteRange(self.size, len(data))
        self._write(data + b"\0" * (-len(data) % _BLOCK))
        return span

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def _end(self) -> None:
        self._write(b"\0" * (2 * _BLOCK))


def _checksum(members: Iterable[bytes]) -> str:
    digest = xxhash.xxh3_64()
    for member in members:
        digest.update(member)
    return digest.hexdigest()


def member_names(key: str, members: tuple[bytes, ...]) -> Iterator[tuple[str, bytes]]:
    """Names the members of a clip: `KEY.json`, `KEY.tracks.zst`, `KEY.000.jpg` …; webdataset splits them at the first dot."""
    if not is_key(key):
        raise ShardError(
            f"'{key}' cannot be a clip's key: only letters, digits, '-' and '_' are allowed"
        )
    names = [
        f"{key}.json",
        f"{key}.tracks.zst",
        *(f"{key}.{i:03d}.jpg" for i in range(len(members) - 2)),
    ]
    return zip(names, members, strict=True)


def open_shard(file: Location) -> AbstractContextManager[ShardWriter]:
    """A writer whose file appears as `file`, synced, when the block ends well, and leaves nothing behind otherwise."""
    return open_shard_as(file.parent, lambda _: file.name)


@contextmanager
def open_shard_as(folder: Location, name: Callable[[str], str]) -> Iterator[ShardWriter]:
    """`open_shard` where `name` gives the file's name from its checksum: other content never takes the place of a shard."""
    with open_atomic_as(folder, lambda: name(writer.checksum)) as file:
        writer = ShardWriter(file)
        yield writer
        writer._end()
