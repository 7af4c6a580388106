"""Reads a shard without pretrack, from the format page alone: python examples/read_a_shard.py SHARD.tar"""

import json
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard


def read_shard(path: str) -> Iterator[dict[str, Any]]:
    """The clips of a shard: their description, frames (JPEG bytes), and tracks as arrays."""
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            if kind == "json":  # comes first, then the tracks, then the frames
                clip = {"key": key, "info": json.loads(data), "jpegs": []}
                if clip["info"]["format"] != 1:
                    raise ValueError(f"{key} is of format {clip['info']['format']}, and not of format 1")
            elif kind == "tracks.zst":
                clip["tracks"] = read_tracks(data)
            else:
                clip["jpegs"].append(data)
                if len(clip["jpegs"]) == len(clip["info"]["frame_numbers"]):
                    yield clip


def read_tracks(data: bytes) -> dict[str, np.ndarray]:
    """Anchors [A], positions [A, T, N, 2] in pixels, visibility and confidence [A, T, N] of 255."""
    if not 0 <= zstandard.frame_content_size(data) <= 1 << 30:  # a frame may claim any size, or none
        raise ValueError("these tracks do not say how large they are, or are too large")
    record = zstandard.ZstdDecompressor().decompress(data)
    version, units = np.frombuffer(record, "<u2", 2, 4)
    a, t, n = map(int, np.frombuffer(record, "<u4", 3, 8))
    values = a * t * n
    if record[:4] != b"PTRK" or version != 1 or len(record) != 20 + 4 * a + 10 * values:
        raise ValueError("these are not tracks of version 1")
    body = np.frombuffer(record, np.uint8, offset=20 + 4 * a)
    planes = body[: 8 * values].reshape(4, 2, a, t, n).astype(np.uint32)
    zigzag = planes[0] | planes[1] << 8 | planes[2] << 16 | planes[3] << 24
    steps = (zigzag >> 1).astype(np.int32) ^ -(zigzag & 1).astype(np.int32)
    positions = steps.cumsum(axis=2, dtype=np.int32) / np.float32(units)
    certainty = body[8 * values :].reshape(2, a, t, n).cumsum(axis=2, dtype=np.uint8)
    return {
        "anchors": np.frombuffer(record, "<i4", a, 20),
        "positions": np.moveaxis(positions.astype(np.float32), 0, -1),
        "visibility": certainty[0],
        "confidence": certainty[1],
    }


if __name__ == "__main__":
    for clip in read_shard(sys.argv[1]):
        print(clip["key"], f"{len(clip['jpegs'])} frames, tracks {clip['tracks']['positions'].shape}")
