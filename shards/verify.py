"""Checks a shard against what is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np
import xxhash

from shards import jpeg
from shards.clip import ClipInfo, Tracks
from shards.codec import decode_frames, decode_tracks
from shards.errors import ShardError
from shards.files import Location, open_stream
from shards.writer import ByteRange, ClipMembers

_CHUNK = 1 << 22
_FARTHEST = 4
"""Frame sizes: trackers of ours keep lost points within two."""


def verify_shard(
    path: Location,
    size: int,
    checksum: str,
    clips: Mapping[str, ClipMembers],
    tabled: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[str]:
    """Yields one sentence for every problem found; nothing if the shard is as it was written.

    Checked, in one pass over the file: its size and checksum; for every clip the checksum of its members, that its description, its
    tracks and the size of every JPEG agree with each other, that its anchors are frames of it and its positions not absurdly far
    outside them. `tabled` is what the tables say of each clip: its `anchors` and `points`, `frames`, and any field of its
    description. That should agree too, since who trains goes by the tables alone.
    """
    problems = []
    try:
        with open_stream(path) as stream:
            reader = _Reader(stream)
            for key, members in sorted(clips.items(), key=lambda item: item[1].info.offset):
                try:
                    _verify_clip(reader, key, members, (tabled or {}).get(key))
                except ShardError as error:
                    problems.append(f"{path.name}: clip {key}: {error}")
            reader.finish()
    except OSError as error:
        yield f"{path.name}: cannot be read ({error.strerror})"
        return
    if reader.place != size:
        yield f"{path.name}: has {reader.place} bytes and should have {size}"
    elif reader.digest.hexdigest() != checksum:
        yield f"{path.name}: its checksum is {reader.digest.hexdigest()} and should be {checksum}"
    yield from problems


class _Reader:
    """Reads members in the order they lie in, and takes the digest of everything on the way: one pass over the file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = xxhash.xxh3_64()
        self.place = 0

    def member(self, span: ByteRange) -> bytes:
        """Raises ShardError if it begins before the place reached, or ends after the file."""
        if span.size < 0:
            raise ShardError(f"its member at {span.offset} has {span.size} bytes by the tables")
        if span.offset < self.place:
            raise ShardError(
                f"its member at {span.offset} lies before the one that it should follow"
            )
        self._take(span.offset - self.place)
        data = self._take(span.size, keep=True)
        if len(data) != span.size:
            raise ShardError("the shard is cut short in it")
        return data

    def finish(self) -> None:
        """Reads on to the end."""
        while self._take(_CHUNK, keep=True):
            pass

    def _take(self, size: int, keep: bool = False) -> bytes:
        parts = []
        while size and (chunk := self._stream.read(min(size, _CHUNK))):
            self.digest.update(chunk)
            self.place += len(chunk)
            size -= len(chunk)
            if keep:
                parts.append(chunk)
        return b"".join(parts)


def _verify_clip(
    reader: _Reader, key: str, members: ClipMembers, tabled: Mapping[str, Any] | None
) -> None:
    data = [reader.member(span) for span in members.byte_ranges]
    members.check(data)
    info = ClipInfo.from_json(data[0])
    if info.key != key or info.frames != len(members.frames):
        raise ShardError(f"its description is of {info.key} with {info.frames} frames")
    tracks = decode_tracks(
        data[1],
        (len(tabled["anchors"]), info.frames, tabled["points"])
        if tabled
        else (None, info.frames, None),
    )
    found = {
        **vars(info),
        "frames": info.frames,
        "anchors": tracks.anchors.tolist(),
        "points": tracks.positions.shape[2],
    }
    for name, said in (tabled or {}).items():
        if said != found[name]:
            raise ShardError(
                f"its '{name}' is {found[name]!r:.80}, and the tables say {said!r:.80}"
            )
    _verify_parts(data[1], members, tracks)
    limit = _FARTHEST * np.array([info.width, info.height])
    if (tracks.positions < -limit).any() or (tracks.positions > limit).any():
        raise ShardError(f"its tracks lead more than {_FARTHEST} frame sizes away")
    for number, frame in enumerate(data[2:]):
        if jpeg.size(frame) != (info.width, info.height):
            raise ShardError(
                f"frame {number} is {jpeg.size(frame)} and should be {(info.width, info.height)}"
            )


def _verify_parts(data: bytes, members: ClipMembers, tracks: Tracks) -> None:
    """Who trains reads one anchor's part of the tracks, and only that."""
    _, t, n = tracks.visibility.shape
    ends = list(accumulate(members.anchors))
    if len(ends) != len(tracks.anchors) or ends[-1] != len(data) or min(members.anchors) <= 0:
        raise ShardError(
            f"its tracks have {len(data)} bytes for {len(tracks.anchors)} anchors, and by the tables {members.anchors}"
        )
    for anchor, end, size in zip(tracks.anchors.tolist(), ends, members.anchors, strict=True):
        decode_frames(data[end - size : end], anchor, [0], (t, n))
