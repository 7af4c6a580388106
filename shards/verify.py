"""Verify a shard against its checksum and its rows in the tables."""

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
from shards.frame_maps import png_size
from shards.score_codec import decode_scores
from shards.writer import ByteRange, ClipMembers

_CHUNK = 1 << 22
_FARTHEST = 4
"""Largest distance of a position from the frame, in frame sizes; our trackers clamp at two."""


def verify_shard(
    path: Location,
    size: int,
    checksum: str,
    clips: Mapping[str, ClipMembers],
    tabled: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[str]:
    """Yield one sentence per problem; nothing if the shard is as written.

    Checked in one pass over the file: its size and checksum; per clip the checksum of its members,
    that description, tracks, scores and the size of every JPEG, depth map and mask agree with each
    other, that anchors are frames of the clip, and that positions are not absurdly far outside the
    frame.

    Raises AccessError if the shard cannot be read.

    clips:  the members of each clip, by key
    tabled: values of each clip in the tables, by key: `anchors`, `points`, `frames`, and any field
            of its description. They must agree with the shard, since training uses only the tables.
    """
    problems = []
    try:
        with open_stream(path) as stream:
            reader = _Reader(stream)
            # In the order of the file, which is read once and cannot be rewound.
            for key, members in sorted(clips.items(), key=lambda item: item[1].info.offset):
                try:
                    _verify_clip(reader, key, members, (tabled or {}).get(key))
                except ShardError as error:
                    problems.append(f"{path.name}: clip {key}: {error}")
            reader.finish()
    except OSError as error:
        yield f"{path.name}: cannot be read ({error.strerror})"
        return
    if reader.offset != size:
        yield f"{path.name}: has {reader.offset} bytes and should have {size}"
    elif reader.digest.hexdigest() != checksum:
        yield f"{path.name}: its checksum is {reader.digest.hexdigest()} and should be {checksum}"
    yield from problems


class _Reader:
    """Read members in file order while hashing everything in between: one pass over the file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = xxhash.xxh3_64()
        self.offset = 0

    def read_member(self, part: ByteRange) -> bytes:
        """Read a member. Raises ShardError if it overlaps the one before or ends after the file."""
        if part.size < 0:
            raise ShardError(f"its member at {part.offset} has {part.size} bytes by the tables")
        if part.offset < self.offset:
            raise ShardError(
                f"its member at {part.offset} lies before the one that it should follow"
            )
        self._take(part.offset - self.offset)
        data = self._take(part.size, keep=True)
        if len(data) != part.size:
            raise ShardError("the shard is cut short in it")
        return data

    def finish(self) -> None:
        """Read to the end of the file."""
        while self._take(_CHUNK, keep=True):
            pass

    def _take(self, size: int, keep: bool = False) -> bytes:
        """Read and hash up to `size` bytes; return them if `keep`, otherwise nothing."""
        parts = []
        while size and (chunk := self._stream.read(min(size, _CHUNK))):
            self.digest.update(chunk)
            self.offset += len(chunk)
            size -= len(chunk)
            if keep:
                parts.append(chunk)
        return b"".join(parts)


def _verify_clip(
    reader: _Reader, key: str, members: ClipMembers, tabled: Mapping[str, Any] | None
) -> None:
    """Check one clip (see `verify_shard`). Raises ShardError with the first problem."""
    data = [reader.read_member(part) for part in members.byte_ranges]
    members.check(data)
    info = ClipInfo.from_json(data[0])
    if info.key != key or info.frames != len(members.frames):
        raise ShardError(f"its description is of {info.key} with {info.frames} frames")
    anchors, points = (len(tabled["anchors"]), tabled["points"]) if tabled else (None, None)
    tracks = decode_tracks(data[1], (anchors, info.frames, points))
    stored = {
        **vars(info),
        "frames": info.frames,
        "anchors": tracks.anchors.tolist(),
        "points": tracks.positions.shape[2],
    }
    for name, value in (tabled or {}).items():
        if value != stored[name]:
            raise ShardError(
                f"its '{name}' is {stored[name]!r:.80}, and the tables say {value!r:.80}"
            )
    _verify_anchor_parts(data[1], members, tracks)
    _verify_maps(reader, members, info)
    if members.scores:
        decode_scores(reader.read_member(members.scores), tracks.visibility.shape[::2])
    limit = _FARTHEST * np.array([info.width, info.height])
    if (tracks.positions < -limit).any() or (tracks.positions > limit).any():
        raise ShardError(f"its tracks lead more than {_FARTHEST} frame sizes away")
    for number, frame in enumerate(data[2:]):
        if jpeg.size(frame) != (info.width, info.height):
            raise ShardError(
                f"frame {number} is {jpeg.size(frame)} and should be {(info.width, info.height)}"
            )


def _verify_maps(reader: _Reader, members: ClipMembers, info: ClipInfo) -> None:
    """Check the depth maps and masks of a clip. Raises ShardError with the first problem."""
    data = [reader.read_member(part) for part in (*members.depths, *members.masks)]
    members.check_maps(data)
    if bool(members.depths) != (info.depth_scale is not None):
        raise ShardError("its description and the tables disagree about depth maps")
    for kind, count in (("depth maps", len(members.depths)), ("masks", len(members.masks))):
        if count not in (0, info.frames):
            raise ShardError(f"it has {count} {kind} for {info.frames} frames")
    size = (info.width, info.height)
    if wrong := [number for number, part in enumerate(data) if png_size(part) != size]:
        raise ShardError(
            f"depth map or mask {wrong[0]} is {png_size(data[wrong[0]])} and should be {size}"
        )


def _verify_anchor_parts(data: bytes, members: ClipMembers, tracks: Tracks) -> None:
    """Check that each anchor's part can be read alone, as training does. Raises ShardError."""
    _, t, n = tracks.visibility.shape
    # The sizes in the tables must cover the member exactly: training seeks by them.
    ends = list(accumulate(members.anchors))
    if len(ends) != len(tracks.anchors) or ends[-1] != len(data) or min(members.anchors) <= 0:
        raise ShardError(
            f"its tracks have {len(data)} bytes for {len(tracks.anchors)} anchors, "
            f"and by the tables {members.anchors}"
        )
    for anchor, end, size in zip(tracks.anchors.tolist(), ends, members.anchors, strict=True):
        decode_frames(data[end - size : end], anchor, [0], (t, n))
