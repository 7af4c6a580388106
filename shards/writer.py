"""Write a shard: a plain tar of clips, whole or not at all, and the byte range of every member."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import xxhash

from shards.clip import ClipInfo, is_key
from shards.errors import ShardError
from shards.files import Location, open_atomic_as
from shards.frame_maps import NO_MAPS, FrameMaps

_BLOCK = 512


@dataclass(frozen=True)
class ByteRange:
    """Position of a member's bytes in the tar file."""

    offset: int
    size: int


@dataclass(frozen=True)
class ClipMembers:
    """Locate the members of one clip in its shard.

    anchors:  size in bytes of each anchor's part of the tracks, in order
    frames:   one range per frame
    checksum: xxh3-64 (hex) of the bytes of description, tracks, then frames in order
    scores:   the scores of the tracks, None if the shard has none; they have their own checksum
    depths, masks: depth map and mask per frame, () for a clip without
    maps_checksum: xxh3-64 (hex) of the bytes of depth maps, then masks; "" without either
    """

    info: ByteRange
    tracks: ByteRange
    anchors: tuple[int, ...]
    frames: tuple[ByteRange, ...]
    checksum: str
    scores: ByteRange | None = None
    depths: tuple[ByteRange, ...] = ()
    masks: tuple[ByteRange, ...] = ()
    maps_checksum: str = ""

    @property
    def byte_ranges(self) -> tuple[ByteRange, ...]:
        """The ranges of description, tracks and frames, in the order of the file."""
        return self.info, self.tracks, *self.frames

    def check(self, data: Iterable[bytes]) -> None:
        """Compare members with the checksum. Raises ShardError if they are not as written."""
        if _checksum(data) != self.checksum:
            raise ShardError("its members' checksum does not fit")

    def check_maps(self, data: Sequence[bytes]) -> None:
        """Compare depth maps and masks with their checksum, as `check` does."""
        if data and _checksum(data) != self.maps_checksum:
            raise ShardError("the checksum of its depth maps and masks does not fit")


class ShardWriter:
    """Append clips to a shard opened by `open_shard`. Equal clips give equal bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = xxhash.xxh3_64()
        self.size = 0

    @property
    def checksum(self) -> str:
        """xxh3-64 (hex) of everything written; of the whole file after `open_shard` closes it."""
        return self._digest.hexdigest()

    def add(
        self,
        info: ClipInfo,
        tracks: tuple[bytes, ...],
        jpegs: tuple[bytes, ...],
        scores: bytes | None = None,
        *,
        maps: FrameMaps = NO_MAPS,
    ) -> ClipMembers:
        """Add one clip: description, encoded tracks (one part per anchor), one JPEG per frame.

        Depth maps, masks and encoded scores of the tracks may follow. They come last, where readers
        that do not know them have read all they need.

        Raises ValueError for another number of images, ShardError for a key that is not allowed.
        """
        optional = [("depth maps", maps.depths), ("masks", maps.masks)]
        for kind, images in [("images", jpegs), *(pair for pair in optional if pair[1])]:
            if len(images) != info.frames:
                raise ValueError(
                    f"clip {info.key} has {info.frames} frames and {len(images)} {kind}"
                )
        members = (info.to_json(), b"".join(tracks), *jpegs)
        named = name_members(info.key, members)
        description, joined, *frames = [self._add_member(name, data) for name, data in named]
        depths, masks = (
            tuple(
                self._add_member(f"{info.key}.{i:03d}.{kind}.png", data)
                for i, data in enumerate(images)
            )
            for kind, images in (("depth", maps.depths), ("mask", maps.masks))
        )
        scored = self._add_member(f"{info.key}.scores.zst", scores) if scores else None
        return ClipMembers(
            info=description,
            tracks=joined,
            anchors=tuple(map(len, tracks)),
            frames=tuple(frames),
            checksum=_checksum(members),
            scores=scored,
            depths=depths,
            masks=masks,
            maps_checksum=_checksum((*maps.depths, *maps.masks)) if depths or masks else "",
        )

    def _add_member(self, name: str, data: bytes) -> ByteRange:
        # No time, owner or mode of this machine: the same clips give the same tar anywhere.
        header = tarfile.TarInfo(name)
        header.size, header.mode, header.mtime = len(data), 0o644, 0
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        position = ByteRange(self.size, len(data))
        self._write(data + b"\0" * (-len(data) % _BLOCK))
        return position

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def _end(self) -> None:
        """Write the two empty blocks that end a tar."""
        self._write(b"\0" * (2 * _BLOCK))


def _checksum(members: Iterable[bytes]) -> str:
    digest = xxhash.xxh3_64()
    for member in members:
        digest.update(member)
    return digest.hexdigest()


def name_members(key: str, members: tuple[bytes, ...]) -> Iterator[tuple[str, bytes]]:
    """Pair a clip's members with their names: `KEY.json`, `KEY.tracks.zst`, `KEY.000.jpg` ….

    webdataset splits a name at its first dot. Raises ShardError for a key that is not allowed.
    """
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
    """Open a shard; it appears as `file`, synced, if the block succeeds, else nothing is left."""
    return open_shard_as(file.parent, lambda _: file.name)


@contextmanager
def open_shard_as(folder: Location, name: Callable[[str], str]) -> Iterator[ShardWriter]:
    """Open a shard like `open_shard`; `name` maps the file's checksum to its name.

    A name that contains the checksum is never overwritten by other content.
    """
    with open_atomic_as(folder, lambda: name(writer.checksum)) as file:
        writer = ShardWriter(file)
        yield writer
        writer._end()
