"""Encode scores of tracks as bytes and decode them: the content of `KEY.scores.zst`.

One zstandard frame, with its checksum, of one little-endian record:

    offset  type             content
    0       4 bytes          "PSCR"
    4       uint16           version (1)
    6       uint16           planes (4)
    8       uint32 x 2       A anchors, N points
    16      uint8 [4, A, N]  epipolar, reprojection, parallax, cycle: codes

A code c from 1 to 255 stands for 2 ** ((c - 128) / 16): pixels, or degrees of parallax, from 0.004
to 245, exact to 2.2 %. Smaller and larger values become the first and the last code. Code 0 is no
score.
"""

from __future__ import annotations

import struct

import numpy as np
import zstandard
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.track_scores import Scores, TrackScores

_VERSION = 1
_PLANES = 4
_HEADER = struct.Struct("<4sHHII")
_ONE, _STEPS = 128, 16
"""The code of 1, and codes per octave."""
_LARGEST = 1 << 26
"""Most bytes of unpacked scores that a reader accepts; more is damage or an attack."""

_VALUES = 2.0 ** ((np.arange(256) - _ONE) / _STEPS)
_VALUES[0] = np.nan


def encode_scores(scores: TrackScores) -> bytes:
    """Encode the scores of a clip's tracks."""
    planes = np.stack([codes_of(plane) for plane in scores.planes])
    header = _HEADER.pack(b"PSCR", _VERSION, _PLANES, *planes.shape[1:])
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(
        header + planes.tobytes()
    )


def decode_scores(data: bytes, shape: tuple[int, int] | None = None) -> TrackScores:
    """Decode the bytes of `encode_scores`; `shape` is the expected (A, N).

    Raises ShardError for anything else, and for scores of another shape or version.
    """
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size > _LARGEST:
            raise ShardError(f"the scores claim to unpack to {size} bytes")
        record = zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise ShardError(f"the scores cannot be unpacked ({error})") from error
    if len(record) < _HEADER.size:
        raise ShardError("the scores are cut short")
    magic, version, planes, anchors, points = _HEADER.unpack_from(record)
    if magic != b"PSCR" or version != _VERSION or planes != _PLANES:
        raise ShardError(f"these are not scores of version {_VERSION}")
    if len(record) != _HEADER.size + planes * anchors * points:
        raise ShardError(
            f"the scores hold {len(record)} bytes, which does not fit {anchors} anchors x "
            f"{points} points"
        )
    if shape and (anchors, points) != shape:
        raise ShardError(
            f"the scores have {anchors} anchors x {points} points, and should have {shape[0]} x "
            f"{shape[1]}"
        )
    codes = np.frombuffer(record, np.uint8, offset=_HEADER.size).reshape(planes, anchors, points)
    return TrackScores(*_VALUES.astype(np.float32)[codes])


def codes_of(values: Scores) -> NDArray[np.uint8]:
    """Return the nearest code of each value, 0 for NaN."""
    with np.errstate(divide="ignore"):
        codes = np.rint(_ONE + _STEPS * np.log2(values))  # minus infinity for 0
    return np.nan_to_num(np.clip(codes, 1, 255), nan=0).astype(np.uint8)
