"""Checks a shard against what is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash

from shards import jpeg
from shards.clip import ClipInfo
from shards.codec import decode_tracks
from shards.errors import ShardError
from shards.reader import read_members
from shards.writer import ClipMembers, Span

_CHUNK = 1 << 22


def verify_shard(path: Path, size: int, checksum: str, clips: Mapping[str, ClipMembers]) -> Iterator[str]:
    """Yields one sentence for every problem found; nothing if the shard is as it was written.

    Checked: the file's size and checksum; for every clip the checksum of its members, that its description, tracks and the size of
    every JPEG agree with each other, and that its anchors are frames of it.
    """
    try:
        actual_size = path.stat().st_size
        digest = xxhash.xxh3_64()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        yield f"{path.name}: cannot be read ({error.strerror})"
        return
    if actual_size != size:
        yield f"{path.name}: has {actual_size} bytes and should have {size}"
    elif digest.hexdigest() != checksum:
        yield f"{path.name}: its checksum is {digest.hexdigest()} and should be {checksum}"
    for key, members in clips.items():
        try:
            _verify_clip(path, key, members)
        except ShardError as error:
            yield f"{path.name}: clip {key}: {error}"


def _verify_clip(path: Path, key: str, members: ClipMembers) -> None:
    spans: list[Span] = [members.info, members.tracks, *members.frames]
    data = read_members(path, [span.offset for span in spans], [span.size for span in spans])
    digest = xxhash.xxh3_64()
    for member in data:
        digest.update(member)
    if digest.hexdigest() != members.checksum:
        raise ShardError("its members' checksum does not fit")
    info, tracks = ClipInfo.from_json(data[0]), decode_tracks(data[1])
    if info.key != key or info.frames != len(members.frames):
        raise ShardError(f"its description is of {info.key} with {info.frames} frames")
    if tracks.positions.shape[1] != info.frames:
        raise ShardError(f"its tracks have {tracks.positions.shape[1]} frames and its description {info.frames}")
    if ((tracks.anchors < 0) | (tracks.anchors >= info.frames)).any():
        raise ShardError(f"its anchors {tracks.anchors.tolist()} are not all among its {info.frames} frames")
    for number, frame in enumerate(data[2:]):
        if jpeg.size(frame) != (info.width, info.height):
            raise ShardError(f"frame {number} is {jpeg.size(frame)} and should be {(info.width, info.height)}")
