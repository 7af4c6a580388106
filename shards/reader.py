"""Reads shards: single members by their place in the file, or a whole tar from front to back."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import xxhash

from shards.clip import ClipInfo
from shards.codec import decode_tracks
from shards.errors import ShardError
from shards.files import Location, open_stream, parse_location, read_ranges
from shards.stored_clip import StoredClip
from shards.writer import ClipMembers

_LARGEST_FILE = 1 << 62
LARGEST_MEMBER = 1 << 30
"""Bytes of a tar's member a reader accepts; one that claims more is damaged or hostile."""


def read_members(
    shard: str | Location, offsets: Sequence[int], sizes: Sequence[int]
) -> list[bytes]:
    """The bytes of members of a shard, in the order asked, reading nothing else. Raises ShardError if it is missing or short."""
    path = parse_location(shard)
    if min(*offsets, *sizes, 0) < 0 or any(
        sum(span) > _LARGEST_FILE for span in zip(offsets, sizes, strict=True)
    ):
        raise ShardError(
            f"no shard has members at such places as are given for {path}: run 'pretrack verify'"
        )
    try:
        members = read_ranges(path, offsets, sizes)
    except OSError as error:
        raise ShardError(
            f"the shard {path} cannot be read ({error.strerror}): run 'pretrack verify'"
        ) from error
    if any(len(member) != size for member, size in zip(members, sizes, strict=True)):
        raise ShardError(f"the shard {path} is cut short: run 'pretrack verify'")
    return members


def read_clip_members(shard: str | Location, members: ClipMembers) -> list[bytes]:
    """All members of a clip: description, tracks, then frames in order. Raises ShardError if they are not as they were written."""
    data = read_members(
        shard,
        [span.offset for span in members.byte_ranges],
        [span.size for span in members.byte_ranges],
    )
    members.check(data)
    return data


def iterate_shard(shard: str | Location, checksum: str | None = None) -> Iterator[StoredClip]:
    """All clips of a shard in order, read as a plain tar without any index. Raises ShardError for damage, naming the shard.

    With its `checksum` (xxh3-64, hex) damage of any kind is found, at the latest after the last clip.
    """
    path = parse_location(shard)
    for key, members in _samples(path, checksum):
        try:
            info = ClipInfo.from_json(members["json"])
            tracks = decode_tracks(members["tracks.zst"], (None, info.frames, None))
            jpegs = tuple(members[f"{i:03d}.jpg"] for i in range(info.frames))
        except KeyError as error:
            raise ShardError(
                f"the clip {key} in {path} lacks its member {error.args[0]}"
            ) from error
        except ShardError as error:
            raise ShardError(f"the clip {key} in {path}: {error}") from error
        yield StoredClip(info, tracks, jpegs)


def _samples(path: Location, checksum: str | None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Groups consecutive members by key, as webdataset does."""
    key, members = "", dict[str, bytes]()
    try:
        with open_stream(path) as stream:
            tail = ChecksumStream(stream)
            for member, data in read_tar(tail):
                name, _, kind = member.partition(".")
                if name != key and members:
                    yield key, members
                    members = {}
                if kind in members:
                    raise tarfile.ReadError(f"two members are called {member!r:.120}")
                key, members[kind] = name, data
            tail.check_end(checksum)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ShardError(
            f"the shard {path} cannot be read as a tar ({error}): run 'pretrack verify'"
        ) from error
    if members:
        yield key, members


def read_tar(stream: BinaryIO | ChecksumStream) -> Iterator[tuple[str, bytes]]:
    """The names and bytes of a plain tar's files, in order. Links, folders and devices are passed over: nothing is unpacked.

    Raises tarfile.TarError for damage, for a tar that is compressed, and for a member that takes more memory than the tar has bytes
    for: sparse files and members of gigabytes, none of which we write. Raises what reading the stream raises.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                if not member.isreg():
                    continue
                if member.issparse() or member.size > LARGEST_MEMBER:
                    raise tarfile.ReadError(
                        f"its member {member.name!r:.120} claims {member.size} bytes"
                    )
                file = tar.extractfile(member)
                data = file.read() if file else b""
                if len(data) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name, data
                tar.members = []  # what has been read is not kept
    except (
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # sizes and lengths that are no numbers
        raise tarfile.ReadError(f"a header of it is damaged ({error})") from error


class ChecksumStream:
    """A stream that remembers its end: a tar that was cut between two members would otherwise seem whole."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = xxhash.xxh3_64()
        self._last = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        self._last = (self._last + data)[-2 * tarfile.BLOCKSIZE :]
        return data

    def check_end(self, checksum: str | None = None) -> None:
        """Raises EOFError if the file does not end in the two empty blocks that end a tar, or has another checksum."""
        while self.read(1 << 20):
            pass
        if self._last != bytes(2 * tarfile.BLOCKSIZE):
            raise EOFError("it is cut short")
        if checksum is not None and self._digest.hexdigest() != checksum:
            raise EOFError("its checksum does not fit")
