"""Encode tracks as bytes and decode them: the content of `KEY.tracks.zst`.

One zstandard frame per anchor, one after the other, so that an anchor can be read without the
others. Each holds one little-endian record:

    offset  type                content
    0       4 bytes             "PTRK"
    4       uint16              version (2)
    6       uint16              units per pixel (32): positions are rounded to 1/32 px
    8       int32               the anchor
    12      uint32 x 2          T frames, N points
    20      uint8 [4, 2, T, N]  positions in units, x then y: differences from the previous frame
                                (the first frame as it is), zigzag-encoded as uint32, then split
                                into byte planes: the lowest bytes of all values, the next bytes …
    ..      uint8 [T, N]        visibility: differences from the previous frame, modulo 256
    ..      uint8 [T, N]        confidence, likewise

Shapes: A anchors, T frames, N points, F chosen frames.
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
"""Most bytes of unpacked tracks that a reader accepts; more is damage or an attack."""

Shape = tuple[int | None, int | None, int | None]
"""(A, T, N), None for a number that is not known."""

Number = TypeVar("Number", np.int32, np.uint8)

TRACKS_VERSION = 2
_HEADER = struct.Struct("<4sHHiII")
_LEVEL = 3
_LARGEST_COORDINATE = 2**25  # pixels; 2**30 units fit int32, and differences wrap both ways


def encode_tracks(tracks: Tracks) -> tuple[bytes, ...]:
    """Encode tracks into one part per anchor; the member holds the parts joined.

    Positions are kept within 1/64 px, visibility and confidence exactly.

    Raises ValueError for positions that are not finite or lie millions of pixels outside the frame
    (a tracker's fault, not to be stored), and for tracks larger than any reader would unpack.
    """
    a, t, n = tracks.visibility.shape
    if (size := a * _bytes_of(t, n)) > LARGEST_TRACKS:
        raise ValueError(
            f"{_describe((a, t, n))} take {size} bytes, "
            f"more than the {LARGEST_TRACKS} that readers allow"
        )
    if (
        not np.isfinite(tracks.positions).all()
        or np.abs(tracks.positions).max(initial=0) > _LARGEST_COORDINATE
    ):
        raise ValueError(
            "tracks hold positions that are not finite or are absurdly far outside the frame"
        )
    units = np.rint(tracks.positions.astype(np.float64) * UNITS_PER_PIXEL).astype(np.int32)
    # Delta along time: points move little per frame, so most values become small.
    steps = np.moveaxis(units, -1, 1).copy()  # [A, 2, T, N]
    steps[:, :, 1:] = np.diff(steps, axis=2)
    # Zigzag: 0, -1, 1, -2 … become 0, 1, 2, 3 …, so that the high bytes of small steps are 0.
    zigzag = ((steps << 1) ^ (steps >> 31)).astype("<u4")
    # Byte planes: the zeros of all high bytes lie together, where zstandard removes them.
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
    """Decode the joined parts of `encode_tracks`.

    Raises ShardError for anything else, and for tracks whose shape differs from `shape`; if all of
    `shape` is known, before any memory is taken for them.
    """
    anchors_expected = (shape and shape[0]) or None
    # One record too many is enough to notice that there are too many.
    records = list(islice(_records(data, shape), anchors_expected and anchors_expected + 1))
    units, (t, n) = records[0].units, records[0].certainty.shape[1:]
    anchors = [record.anchor for record in records]
    _check_shape((len(records), t, n), shape)
    steps = np.stack([_signed(record.steps) for record in records])  # [A, 2, T, N]
    # Sum in the stored types: a difference that wrapped when it was stored wraps back.
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
    """Decode some frames of one anchor's part.

    part:   one of the parts that `encode_tracks` returns
    anchor: the anchor's frame index within the clip, as a check
    frames: indices within the clip, F of them
    shape:  the expected (T, N), or None

    Returns positions [F, N, 2], visibility and confidence [F, N]. Raises ShardError for anything
    but tracks of this anchor that have these frames and this shape.
    """
    expected: Shape | None = (None, *shape) if shape else None
    record = _read_record(_unpack(part, expected))
    t, n = record.certainty.shape[1:]
    _check_shape((None, t, n), expected)
    if record.anchor != anchor:
        raise ShardError(
            f"the tracks are those of anchor {record.anchor}, and not of anchor {anchor}"
        )
    if not (min(frames) >= 0 and max(frames) < t):
        raise ShardError(f"the tracks have {t} frames, and frames {list(frames)} were asked for")
    # Later differences do not affect the frames asked for.
    end = max(frames) + 1
    positions = _sums(_signed(record.steps[:, :, :end]), frames).astype(np.float32) / record.units
    visibility, confidence = _sums(record.certainty[:, :end], frames)
    return np.ascontiguousarray(np.moveaxis(positions, 0, -1)), visibility, confidence


@dataclass(frozen=True, eq=False)
class _Record:
    """One anchor's record: differences along time, still in their packed form.

    units:     units per pixel
    steps:     uint8 [4, 2, T, N]  of x and y, zigzag-encoded, as byte planes
    certainty: uint8 [2, T, N]     of visibility and confidence, modulo 256
    """

    units: int
    anchor: int
    steps: NDArray[np.uint8]
    certainty: NDArray[np.uint8]


def _records(data: bytes, shape: Shape | None) -> Iterator[_Record]:
    """Read all anchors' records. Raises ShardError if there is none or their shapes differ."""
    first: _Record | None = None
    last, total = -1, 0
    for part in _split_parts(data):
        record = _read_record(_unpack(part, shape))
        first = first or record
        # Increasing anchors also bound their number: it is at most T.
        if record.anchor <= last:
            raise ShardError(
                f"the tracks' anchors do not increase: {record.anchor} comes after {last}"
            )
        last = record.anchor
        if (record.units, record.certainty.shape) != (first.units, first.certainty.shape):
            raise ShardError(
                f"the tracks of anchor {record.anchor} differ in shape "
                f"from those of anchor {first.anchor}"
            )
        # Each part may be small enough alone, so bound their sum as well.
        total += _bytes_of(*record.certainty.shape[1:])
        if total > LARGEST_TRACKS:
            raise ShardError(
                f"the tracks claim to unpack to {total} bytes, "
                f"more than the {LARGEST_TRACKS} allowed"
            )
        yield record
    if first is None:
        raise ShardError("the tracks are cut short")


def _split_parts(data: bytes) -> Iterator[bytes]:
    """Split a tracks member into its parts, which are zstandard frames.

    Their ends follow from the headers of their blocks (RFC 8878, 3.1.1). Raises ShardError.
    """
    end = 0
    while end < len(data):
        start, last = end, 0
        try:
            # 18 bytes are the longest header of a zstandard frame.
            end += zstandard.frame_header_size(data[start : start + 18])
            checked = zstandard.get_frame_parameters(data[start : start + 18]).has_checksum
        except zstandard.ZstdError as error:
            raise ShardError(f"the tracks cannot be unpacked ({error})") from error
        # A block header has 3 bytes: last block (1 bit), type (2 bits), size (21 bits). A block of
        # type 1 repeats a single byte `size` times.
        while not last:
            block = int.from_bytes(data[end : end + 3], "little")
            last, repeats, size = block & 1, block >> 1 & 3 == 1, block >> 3
            end += 3 + (1 if repeats else size)
            if end > len(data) or not (size or last):
                raise ShardError("the tracks are cut short")
        end += 4 * checked  # the frame's optional checksum
        yield data[start:end]


def _read_record(record: bytes) -> _Record:
    """Parse an unpacked record. Raises ShardError if its header and its length do not fit."""
    if len(record) < _HEADER.size:
        raise ShardError("the tracks are cut short")
    magic, version, units, anchor, t, n = _HEADER.unpack_from(record)
    if magic != b"PTRK" or units == 0 or n == 0:
        raise ShardError("these are not tracks")
    if version != TRACKS_VERSION:
        raise ShardError(
            f"these tracks have version {version}, "
            f"and this version of pretrack reads version {TRACKS_VERSION}"
        )
    if not 0 <= anchor < t:
        raise ShardError(f"the tracks' anchor {anchor} is not among their {t} frames")
    if len(record) != _bytes_of(t, n):
        raise ShardError(
            f"the tracks hold {len(record)} bytes, which does not fit {_describe((None, t, n))}"
        )
    body = np.frombuffer(record, np.uint8, offset=_HEADER.size)
    return _Record(
        units, anchor, body[: 8 * t * n].reshape(4, 2, t, n), body[8 * t * n :].reshape(2, t, n)
    )


def _check_shape(actual: Shape, expected: Shape | None) -> None:
    """Raise ShardError if a number that `expected` knows differs."""
    if expected and any(
        number not in (None, stored) for number, stored in zip(expected, actual, strict=True)
    ):
        raise ShardError(
            f"the tracks have {_describe(actual)}, and should have {_describe(expected)}"
        )


def _signed(planes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Undo byte planes and zigzag: [4, ...] → [...]."""
    zigzag = planes[0].astype(np.uint32)
    # Steps are small, so most higher planes hold only zeros and cost one scan.
    for plane in (1, 2, 3):
        if planes[plane].any():
            zigzag |= planes[plane].astype(np.uint32) << np.uint32(8 * plane)
    return (zigzag >> 1).view(np.int32) ^ -(zigzag & 1).view(np.int32)


def _sums(steps: NDArray[Number], frames: Sequence[int]) -> NDArray[Number]:
    """Sum steps [2, T, N] from the start up to each of `frames`: [2, F, N], in the type of `steps`.

    The cast to that type wraps overflows exactly as `np.cumsum` in that type does.
    """
    # A product with a 0/1 matrix [F, T] is far faster than a cumulative sum; float64 is exact here.
    until = np.arange(steps.shape[1]) <= np.array(frames)[:, None]
    sums = until.astype(np.float64) @ steps.astype(np.float64)
    return sums.astype(np.int64).astype(steps.dtype)


def _differences(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take differences along time, modulo 256; shapes stay [..., T, N]."""
    steps = values.copy()
    steps[..., 1:, :] = values[..., 1:, :] - values[..., :-1, :]
    return steps


def _bytes_of(t: int, n: int) -> int:
    """Compute the bytes of an unpacked record: per point 4 x 2 of position and 2 of certainty."""
    return _HEADER.size + 10 * t * n


def _describe(shape: Shape) -> str:
    """Put a shape into words: "3 anchors x 50 frames x 256 points"."""
    named = zip(shape, ("anchors", "frames", "points"), strict=True)
    return " x ".join(f"{number} {noun}" for number, noun in named if number is not None)


def _unpack(part: bytes, shape: Shape | None) -> bytes:
    """Decompress one anchor's part.

    Raises ShardError, before any memory is taken, if it claims to hold more than `shape` takes or
    than any tracks may.
    """
    _, t, n = shape or (None, None, None)
    try:
        size = zstandard.get_frame_parameters(part).content_size
        if size > LARGEST_TRACKS:
            raise ShardError(
                f"the tracks claim to unpack to {size} bytes, "
                f"more than the {LARGEST_TRACKS} allowed"
            )
        if t is not None and n is not None and size > _bytes_of(t, n):
            raise ShardError(
                f"the tracks claim to unpack to {size} bytes, "
                f"more than {_describe((None, t, n))} take"
            )
        return zstandard.ZstdDecompressor().decompress(part)
    except zstandard.ZstdError as error:
        raise ShardError(f"the tracks cannot be unpacked ({error})") from error
