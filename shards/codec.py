"""Tracks as bytes: the content of `KEY.tracks.zst`.

One zstandard frame around a small-endian record:

    offset  type                what
    0       4 bytes             "PTRK"
    4       uint16              version (1)
    6       uint16              units a pixel (32): positions are rounded to 1/32 px
    8       uint32 x 3          A anchors, T frames, N points
    20      int32 [A]           anchors
    ..      uint8 [4, 2, A, T, N]   positions in units, x then y: differences from the frame before (the first frame as is), zigzag
                                as uint32, then the lowest bytes of all values, the next bytes, and so on
    ..      uint8 [A, T, N]     visibility, differences from the frame before, modulo 256
    ..      uint8 [A, T, N]     confidence, likewise
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from shards.clip import Tracks
from shards.errors import ShardError

UNITS_PER_PIXEL = 32
LARGEST_TRACKS = 1 << 30
"""Bytes of unpacked tracks a reader accepts; a record that claims more is damaged or hostile."""

Shape = tuple[int | None, int | None, int | None]
"""A anchors, T frames, N points; None for what is not known."""

_HEADER = struct.Struct("<4sHHIII")
_LEVEL = 3
_FARTHEST = 2**25


def encode_tracks(tracks: Tracks) -> bytes:
    """Packs tracks; positions are kept to 1/64 px, visibility and confidence exactly.

    Raises ValueError for positions that are not finite or lie millions of pixels away: a tracker's fault, not to be stored; and for
    tracks that no reader would unpack.
    """
    a, t, n = tracks.visibility.shape
    if (size := _bytes_of(a, t, n)) > LARGEST_TRACKS:
        raise ValueError(f"{_in_words((a, t, n))} take {size} bytes, more than the {LARGEST_TRACKS} that readers allow")
    if not np.isfinite(tracks.positions).all() or np.abs(tracks.positions).max(initial=0) > _FARTHEST:
        raise ValueError("tracks hold positions that are not finite or are absurdly far outside the frame")
    units = np.rint(tracks.positions.astype(np.float64) * UNITS_PER_PIXEL).astype(np.int32)
    steps = np.moveaxis(units, -1, 0).copy()
    steps[:, :, 1:] = np.diff(steps, axis=2)
    zigzag = ((steps << 1) ^ (steps >> 31)).astype("<u4")
    planes = np.ascontiguousarray(zigzag).view(np.uint8).reshape(-1, 4).T
    record = b"".join(
        (
            _HEADER.pack(b"PTRK", 1, UNITS_PER_PIXEL, a, t, n),
            tracks.anchors.astype("<i4").tobytes(),
            np.ascontiguousarray(planes).tobytes(),
            _differences(tracks.visibility).tobytes(),
            _differences(tracks.confidence).tobytes(),
        )
    )
    return zstandard.ZstdCompressor(level=_LEVEL).compress(record)


def decode_tracks(data: bytes, shape: Shape | None = None) -> Tracks:
    """Unpacks what `encode_tracks` made. Raises ShardError for anything else, and for tracks of another `shape` than that given: if
    it is known as a whole, before they take memory."""
    record = _read(data, shape)
    positions = np.cumsum(_signed(record.steps), axis=2, dtype=np.int32).astype(np.float32) / record.units
    return Tracks(
        anchors=record.anchors.astype(np.int32),
        positions=np.ascontiguousarray(np.moveaxis(positions, 0, -1)),
        visibility=np.cumsum(record.certainty[0], axis=1, dtype=np.uint8),
        confidence=np.cumsum(record.certainty[1], axis=1, dtype=np.uint8),
    )


def decode_frames(
    data: bytes, anchor: int, frames: Sequence[int], shape: Shape | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Of `decode_tracks` only some frames F of one anchor (an index), in a fraction of the time.

    Gives positions [F, N, 2], visibility and confidence [F, N]. Raises ShardError for anything but tracks with these frames,
    and of this `shape` if one is given.
    """
    record = _read(data, shape)
    a, t, _ = record.certainty.shape[1:]
    if not (0 <= anchor < a and min(frames) >= 0 and max(frames) < t):
        raise ShardError(f"the tracks have {a} anchors and {t} frames, and frames {list(frames)} of anchor {anchor} were asked for")
    positions = _sums(_signed(record.steps[:, :, anchor]), frames).astype(np.float32) / record.units
    visibility, confidence = _sums(record.certainty[:, anchor], frames)
    return np.ascontiguousarray(np.moveaxis(positions, 0, -1)), visibility, confidence


@dataclass(frozen=True, eq=False)
class _Record:
    """What was packed: differences along T.

    steps:     uint8 [4, 2, A, T, N]  of x and y, zigzag, as planes of bytes
    certainty: uint8 [2, A, T, N]     of visibility and confidence
    """

    units: int
    anchors: NDArray[np.int32]
    steps: NDArray[np.uint8]
    certainty: NDArray[np.uint8]


def _read(data: bytes, shape: Shape | None) -> _Record:
    record = _unpack(data, shape)
    if len(record) < _HEADER.size:
        raise ShardError("the tracks are cut short")
    magic, version, units, a, t, n = _HEADER.unpack_from(record)
    if magic != b"PTRK" or units == 0:
        raise ShardError("these are not tracks")
    if version != 1:
        raise ShardError(f"these tracks have version {version}, and this version of pretrack reads version 1")
    if shape and any(known not in (None, found) for known, found in zip(shape, (a, t, n), strict=True)):
        raise ShardError(f"the tracks have {_in_words((a, t, n))}, and should have {_in_words(shape)}")
    values = a * t * n
    if len(record) != _bytes_of(a, t, n):
        raise ShardError(f"the tracks hold {len(record)} bytes, which does not fit {_in_words((a, t, n))}")
    body = np.frombuffer(record, np.uint8, offset=_HEADER.size)
    anchors, planes = body[: 4 * a].view("<i4"), 4 * a + 8 * values
    if ((anchors < 0) | (anchors >= t)).any():
        raise ShardError(f"the tracks' anchors {anchors[:9].tolist()} are not all among their {t} frames")
    return _Record(units, anchors, body[4 * a : planes].reshape(4, 2, a, t, n), body[planes:].reshape(2, a, t, n))


def _signed(planes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Numbers from the bytes of their zigzag form, lowest first: [4, ...] → [...]. Steps are small: higher planes are mostly 0."""
    zigzag = planes[0].astype(np.uint32)
    for place in (1, 2, 3):
        if planes[place].any():
            zigzag |= planes[place].astype(np.uint32) << np.uint32(8 * place)
    return (zigzag >> 1).view(np.int32) ^ -(zigzag & 1).view(np.int32)


def _sums(steps: NDArray[Any], frames: Sequence[int]) -> NDArray[Any]:
    """The running sums of steps [..., T, N] at some frames: [..., F, N]. Whole rows are added up between them."""
    ordered = sorted(set(frames))
    starts = [0, *(frame + 1 for frame in ordered[:-1])]
    between = np.add.reduceat(steps[..., : ordered[-1] + 1, :], starts, axis=-2, dtype=steps.dtype)
    return np.cumsum(between, axis=-2, dtype=steps.dtype)[..., [ordered.index(frame) for frame in frames], :]


def _differences(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Differences along time, modulo 256: [A, T, N]."""
    steps = values.copy()
    steps[:, 1:] = values[:, 1:] - values[:, :-1]
    return steps


def _bytes_of(a: int, t: int, n: int) -> int:
    """Of an unpacked record."""
    return _HEADER.size + 4 * a + 10 * a * t * n


def _in_words(shape: Shape) -> str:
    named = zip(shape, ("anchors", "frames", "points"), strict=True)
    return " x ".join(f"{number} {noun}" for number, noun in named if number is not None)


def _unpack(data: bytes, shape: Shape | None) -> bytes:
    """The zstandard frame's content, refused before it is unpacked if it claims to be huge, or more than fits the shape."""
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if not 0 <= size <= LARGEST_TRACKS:
            raise ShardError(f"the tracks claim to unpack to {size} bytes, more than the {LARGEST_TRACKS} allowed")
        known = [number for number in shape or () if number is not None]
        if shape and len(known) == 3 and size > _bytes_of(*known):
            raise ShardError(f"the tracks claim to unpack to {size} bytes, more than {_in_words(shape)} take")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=LARGEST_TRACKS)
    except zstandard.ZstdError as error:
        raise ShardError(f"the tracks cannot be unpacked ({error})") from error
