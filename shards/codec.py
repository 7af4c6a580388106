"""Tracks as bytes: the content of `KEY.tracks.zst`.

A zstandard frame an anchor, one after the other, so that one anchor is read without the others. In each a little-endian record:

    offset  type                what
    0       4 bytes             "PTRK"
    4       uint16              version (2)
    6       uint16              units a pixel (32): positions are rounded to 1/32 px
    8       int32               the anchor
    12      uint32 x 2          T frames, N points
    20      uint8 [4, 2, T, N]  positions in units, x then y: differences from the frame before (the first frame as is), zigzag
                                as uint32, then the lowest bytes of all values, the next bytes, and so on
    ..      uint8 [T, N]        visibility, differences from the frame before, modulo 256
    ..      uint8 [T, N]        confidence, likewise
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

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

Number = TypeVar("Number", np.int32, np.uint8)

TRACKS_VERSION = 2
_HEADER = struct.Struct("<4sHHiII")
_LEVEL = 3
_FARTHEST = 2**25


def encode_tracks(tracks: Tracks) -> tuple[bytes, ...]:
    """Packs tracks, each anchor's by itself; positions are kept to 1/64 px, visibility and confidence exactly.

    Raises ValueError for positions that are not finite or lie millions of pixels away: a tracker's fault, not to be stored; and for
    tracks that no reader would unpack.
    """
    a, t, n = tracks.visibility.shape
    if (size := a * _bytes_of(t, n)) > LARGEST_TRACKS:
        raise ValueError(
            f"{_in_words((a, t, n))} take {size} bytes, more than the {LARGEST_TRACKS} that readers allow"
        )
    if (
        not np.isfinite(tracks.positions).all()
        or np.abs(tracks.positions).max(initial=0) > _FARTHEST
    ):
        raise ValueError(
            "tracks hold positions that are not finite or are absurdly far outside the frame"
        )
    units = np.rint(tracks.positions.astype(np.float64) * UNITS_PER_PIXEL).astype(np.int32)
    steps = np.moveaxis(units, -1, 1).copy()  # [A, 2, T, N]
    steps[:, :, 1:] = np.diff(steps, axis=2)
    zigzag = ((steps << 1) ^ (steps >> 31)).astype("<u4")
    planes = np.moveaxis(zigzag.view(np.uint8).reshape(a, 2, t, n, 4), -1, 1)  # [A, 4, 2, T, N]
    certainty = _differences(
        np.stack([tracks.visibility, tracks.confidence], axis=1)
    )  # [A, 2, T, N]
    packer = zstandard.ZstdCompressor(level=_LEVEL)
    return tuple(
        packer.compress(
            _HEADER.pack(b"PTRK", TRACKS_VERSION, UNITS_PER_PIXEL, anchor, t, n)
            + planes[i].tobytes()
            + certainty[i].tobytes()
        )
        for i, anchor in enumerate(tracks.anchors.tolist())
    )


def decode_tracks(data: bytes, shape: Shape | None = None) -> Tracks:
    """Unpacks what `encode_tracks` made, its parts joined. Raises ShardError for anything else, and for tracks of another `shape`
    than that given: if it is known as a whole, before they take memory."""
    most = (shape and shape[0]) or None
    records = list(
        islice(_records(data, shape), most and most + 1)
    )  # one too many is enough to know
    units, (t, n) = records[0].units, records[0].certainty.shape[1:]
    anchors = [record.anchor for record in records]
    _check((len(records), t, n), shape)
    steps = np.stack([_signed(record.steps) for record in records])  # [A, 2, T, N]
    positions = np.cumsum(steps, axis=2, dtype=np.int32).astype(np.float32) / units
    certainty = np.stack(
        [np.cumsum(record.certainty, axis=1, dtype=np.uint8) for record in records]
    )
    return Tracks(
        anchors=np.array(anchors, np.int32),
        positions=np.ascontiguousarray(np.moveaxis(positions, 1, -1)),
        visibility=np.ascontiguousarray(certainty[:, 0]),
        confidence=np.ascontiguousarray(certainty[:, 1]),
    )


def decode_frames(
    part: bytes, anchor: int, frames: Sequence[int], shape: tuple[int, int] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Of the tracks of one anchor (a frame's number), which `encode_tracks` gives as one part, only some frames F.

    Gives positions [F, N, 2], visibility and confidence [F, N]. Raises ShardError for anything but tracks of this anchor with these
    frames, and of this `shape` (T, N) if one is given.
    """
    wanted: Shape | None = (
        (None, *shape) if shape else None
    )  # how many anchors there are, a part does not say
    record = _read(_unpack(part, wanted))
    t, n = record.certainty.shape[1:]
    _check((None, t, n), wanted)
    if record.anchor != anchor:
        raise ShardError(
            f"the tracks are those of anchor {record.anchor}, and not of anchor {anchor}"
        )
    if not (min(frames) >= 0 and max(frames) < t):
        raise ShardError(f"the tracks have {t} frames, and frames {list(frames)} were asked for")
    end = max(frames) + 1
    positions = _sums(_signed(record.steps[:, :, :end]), frames).astype(np.float32) / record.units
    visibility, confidence = _sums(record.certainty[:, :end], frames)
    return np.ascontiguousarray(np.moveaxis(positions, 0, -1)), visibility, confidence


@dataclass(frozen=True, eq=False)
class _Record:
    """What was packed of an anchor: differences along T.

    steps:     uint8 [4, 2, T, N]  of x and y, zigzag, as planes of bytes
    certainty: uint8 [2, T, N]     of visibility and confidence
    """

    units: int
    anchor: int
    steps: NDArray[np.uint8]
    certainty: NDArray[np.uint8]


def _records(data: bytes, shape: Shape | None) -> Iterator[_Record]:
    """The records of all anchors, alike in shape, and one at least."""
    first: _Record | None = None
    last, taken = -1, 0
    for frame in _frames(data):
        record = _read(_unpack(frame, shape))
        first = first or record
        if record.anchor <= last:  # so there are T at most
            raise ShardError(
                f"the tracks' anchors do not increase: {record.anchor} comes after {last}"
            )
        last = record.anchor
        if (record.units, record.certainty.shape) != (first.units, first.certainty.shape):
            raise ShardError(
                f"the tracks of anchor {record.anchor} differ in shape from those of anchor {first.anchor}"
            )
        taken += _bytes_of(*record.certainty.shape[1:])
        if taken > LARGEST_TRACKS:
            raise ShardError(
                f"the tracks claim to unpack to {taken} bytes, more than the {LARGEST_TRACKS} allowed"
            )
        yield record
    if first is None:
        raise ShardError("the tracks are cut short")


def _frames(data: bytes) -> Iterator[bytes]:
    """Cuts zstandard frames apart that follow one another; where one ends its blocks say (RFC 8878, 3.1.1)."""
    end = 0
    while end < len(data):
        start, last = end, 0
        try:
            end += zstandard.frame_header_size(data[start : start + 18])
            checked = zstandard.get_frame_parameters(data[start : start + 18]).has_checksum
        except zstandard.ZstdError as error:
            raise ShardError(f"the tracks cannot be unpacked ({error})") from error
        while not last:
            block = int.from_bytes(data[end : end + 3], "little")
            last, repeats, size = block & 1, block >> 1 & 3 == 1, block >> 3
            end += 3 + (1 if repeats else size)
            if end > len(data) or not (size or last):
                raise ShardError("the tracks are cut short")
        end += 4 * checked
        yield data[start:end]


def _read(record: bytes) -> _Record:
    if len(record) < _HEADER.size:
        raise ShardError("the tracks are cut short")
    magic, version, units, anchor, t, n = _HEADER.unpack_from(record)
    if magic != b"PTRK" or units == 0 or n == 0:
        raise ShardError("these are not tracks")
    if version != TRACKS_VERSION:
        raise ShardError(
            f"these tracks have version {version}, and this version of pretrack reads version {TRACKS_VERSION}"
        )
    if not 0 <= anchor < t:
        raise ShardError(f"the tracks' anchor {anchor} is not among their {t} frames")
    if len(record) != _bytes_of(t, n):
        raise ShardError(
            f"the tracks hold {len(record)} bytes, which does not fit {_in_words((None, t, n))}"
        )
    body = np.frombuffer(record, np.uint8, offset=_HEADER.size)
    return _Record(
        units, anchor, body[: 8 * t * n].reshape(4, 2, t, n), body[8 * t * n :].reshape(2, t, n)
    )


def _check(found: Shape, shape: Shape | None) -> None:
    if shape and any(
        known not in (None, number) for known, number in zip(shape, found, strict=True)
    ):
        raise ShardError(f"the tracks have {_in_words(found)}, and should have {_in_words(shape)}")


def _signed(planes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Numbers from the bytes of their zigzag form, lowest first: [4, ...] → [...]. Steps are small: higher planes are mostly 0."""
    zigzag = planes[0].astype(np.uint32)
    for place in (1, 2, 3):
        if planes[place].any():
            zigzag |= planes[place].astype(np.uint32) << np.uint32(8 * place)
    return (zigzag >> 1).view(np.int32) ^ -(zigzag & 1).view(np.int32)


def _sums(steps: NDArray[Number], frames: Sequence[int]) -> NDArray[Number]:
    """The running sums of steps [2, T, N] at some frames: [2, F, N], in their own type, so that they wrap as theirs do.

    They are a product of matrices, which is far faster than adding up; doubles hold the sums exactly.
    """
    until = np.arange(steps.shape[1]) <= np.array(frames)[:, None]
    return (
        (until.astype(np.float64) @ steps.astype(np.float64)).astype(np.int64).astype(steps.dtype)
    )


def _differences(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Differences along time, modulo 256: [..., T, N]."""
    steps = values.copy()
    steps[..., 1:, :] = values[..., 1:, :] - values[..., :-1, :]
    return steps


def _bytes_of(t: int, n: int) -> int:
    """Of an unpacked record."""
    return _HEADER.size + 10 * t * n


def _in_words(shape: Shape) -> str:
    named = zip(shape, ("anchors", "frames", "points"), strict=True)
    return " x ".join(f"{number} {noun}" for number, noun in named if number is not None)


def _unpack(frame: bytes, shape: Shape | None) -> bytes:
    """The content of a zstandard frame, refused before it is unpacked if it claims to be huge, or more than fits the shape."""
    _, t, n = shape or (None, None, None)
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        if not 0 <= size <= LARGEST_TRACKS:
            raise ShardError(
                f"the tracks claim to unpack to {size} bytes, more than the {LARGEST_TRACKS} allowed"
            )
        if t is not None and n is not None and size > _bytes_of(t, n):
            raise ShardError(
                f"the tracks claim to unpack to {size} bytes, more than {_in_words((None, t, n))} take"
            )
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise ShardError(f"the tracks cannot be unpacked ({error})") from error
