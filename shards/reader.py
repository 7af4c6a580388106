"""Read shards: single members by byte range, or a whole tar from front to back."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import xxhash

from shards.clip import ClipInfo
from shards.codec import decode_tracks
from shards.errors import ShardError
from shards.files import Location, open_stream, parse_location, read_ranges
from shards.frame_maps import FrameMaps
from shards.stored_clip import StoredClip
from shards.writer import ClipMembers

_LARGEST_FILE = 1 << 62
LARGEST_MEMBER = 1 << 30
"""Most bytes of a tar's member that a reader accepts; more is damage or an attack."""


def read_members(
    shard: str | Location, offsets: Sequence[int], sizes: Sequence[int]
) -> list[bytes]:
    """Read members of a shard by byte range, in the given order, and nothing else of it.

    Raises ShardError if the shard is missing or cut short, AccessError if it cannot be read.
    """
    path = parse_location(shard)
    if min(*offsets, *sizes, 0) < 0 or any(
        offset + size > _LARGEST_FILE for offset, size in zip(offsets, sizes, strict=True)
    ):
        raise ShardError(
            f"no shard can have members at the offsets given for {path}: run 'pretrack verify'"
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
    """Read the members that every clip has: description, tracks, then frames in order.

    Raises ShardError if they are not as written, AccessError if they cannot be read.
    """
    ranges = members.byte_ranges
    data = read_members(shard, [part.offset for part in ranges], [part.size for part in ranges])
    members.check(data)
    return data


def read_frame_maps(shard: str | Location, members: ClipMembers, info: ClipInfo) -> FrameMaps:
    """Read the depth maps and masks of a clip; none if it has none. Raises as above."""
    ranges = (*members.depths, *members.masks)
    data = []
    if ranges:
        data = read_members(shard, [part.offset for part in ranges], [part.size for part in ranges])
    members.check_maps(data)
    count = len(members.depths)
    maps = FrameMaps(tuple(data[:count]), tuple(data[count:]))
    _check_depth(maps, info)
    return maps


def _check_depth(maps: FrameMaps, info: ClipInfo) -> None:
    """Raise ShardError if only one of depth maps and their scale is there."""
    if bool(maps.depths) != (info.depth_scale is not None):
        raise ShardError("it has depth maps without their scale, or a scale without depth maps")


def iterate_shard(shard: str | Location, checksum: str | None = None) -> Iterator[StoredClip]:
    """Iterate over all clips of a shard in order, reading a plain tar without any index.

    Raises ShardError for damage, naming the shard, and AccessError if it cannot be read. With the
    shard's `checksum` (xxh3-64, hex) every kind of damage is noticed, at the latest after the last
    clip.
    """
    path = parse_location(shard)
    for key, members in _samples(path, checksum):
        try:
            info = ClipInfo.from_json(members["json"])
            tracks = decode_tracks(members["tracks.zst"], (None, info.frames, None))
            jpegs = tuple(members[f"{i:03d}.jpg"] for i in range(info.frames))
            maps = FrameMaps(
                *(_of_every_frame(members, f"{kind}.png", info) for kind in ("depth", "mask"))
            )
            _check_depth(maps, info)
        except KeyError as error:
            raise ShardError(
                f"the clip {key} in {path} lacks its member {error.args[0]}"
            ) from error
        except ShardError as error:
            raise ShardError(f"the clip {key} in {path}: {error}") from error
        yield StoredClip(info, tracks, jpegs, maps)


def _of_every_frame(members: dict[str, bytes], suffix: str, info: ClipInfo) -> tuple[bytes, ...]:
    """Return an optional member of every frame, () if no frame has it.

    Raises KeyError if only some have it.
    """
    names = [f"{i:03d}.{suffix}" for i in range(info.frames)]
    if not any(name in members for name in names):
        return ()
    return tuple(members[name] for name in names)


def _samples(path: Location, checksum: str | None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Group consecutive members by key, as webdataset does: yields (key, members by extension)."""
    key, members = "", dict[str, bytes]()
    try:
        with open_stream(path) as stream:
            checked = ChecksumStream(stream)
            for member, data in read_tar(checked):
                # A key has no dot, so the first one ends it.
                name, _, extension = member.partition(".")
                if name != key and members:
                    yield key, members
                    members = {}
                if extension in members:
                    raise tarfile.ReadError(f"two members are called {member!r:.120}")
                key, members[extension] = name, data
            checked.check_end(checksum)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ShardError(
            f"the shard {path} cannot be read as a tar ({error}): run 'pretrack verify'"
        ) from error
    if members:
        yield key, members


def read_tar(stream: BinaryIO | ChecksumStream) -> Iterator[tuple[str, bytes]]:
    """Iterate over the files of a plain tar as (name, bytes), in order.

    Links, folders and devices are skipped; nothing is unpacked to disk.

    Raises tarfile.TarError for damage, for a compressed tar, and for members that would take more
    memory than the tar has bytes (sparse files, members of gigabytes), which we never write. Errors
    of reading the stream are passed on.
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
                tar.members = []  # tarfile would keep every header it has read
    # tarfile raises these for sizes and lengths that are not numbers.
    except (ValueError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError(f"a header of it is damaged ({error})") from error


class ChecksumStream:
    """A stream that checks, at its end, that nothing is missing.

    A tar that was cut off between two members would otherwise look complete.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = xxhash.xxh3_64()
        self._last = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        # The last two blocks suffice to see whether the tar ends as it should.
        self._last = (self._last + data)[-2 * tarfile.BLOCKSIZE :]
        return data

    def check_end(self, checksum: str | None = None) -> None:
        """Read to the end and check it.

        Raises EOFError if the stream does not end in the two empty blocks that end a tar, or has
        another checksum (xxh3-64, hex) than the one given.
        """
        while self.read(1 << 20):
            pass
        if self._last != bytes(2 * tarfile.BLOCKSIZE):
            raise EOFError("it is cut short")
        if checksum is not None and self._digest.hexdigest() != checksum:
            raise EOFError("its checksum does not fit")
