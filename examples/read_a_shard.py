"""Reads a shard without pretrack, from the format page alone: python examples/read_a_shard.py SHARD.tar"""

import json
import struct
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
                    raise ValueError(
                        f"{key} is of format {clip['info']['format']}, and not of format 1"
                    )
            elif kind == "tracks.zst":
                clip["tracks"] = read_tracks(data)
            else:
                clip["jpegs"].append(data)
                if len(clip["jpegs"]) == len(clip["info"]["frame_numbers"]):
                    yield clip


def read_tracks(data: bytes) -> dict[str, np.ndarray]:
    """Anchors [A], positions [A, T, N, 2] in pixels, visibility and confidence [A, T, N] of 255."""
    found: dict[str, list[Any]] = {
        "anchors": [],
        "positions": [],
        "visibility": [],
        "confidence": [],
    }
    while data:  # a frame an anchor
        if not 0 <= zstandard.frame_content_size(data) <= 1 << 30:  # it may claim any size, or none
            raise ValueError("these tracks do not say how large they are, or are too large")
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        record = unpacker.decompress(data)
        magic, version, units, anchor, t, n = struct.unpack(
            "<4sHHiII", record[:20].ljust(20, b"\0")
        )
        if (
            not unpacker.eof
            or (magic, version) != (b"PTRK", 2)
            or units == 0
            or len(record) != 20 + 10 * t * n
        ):
            raise ValueError("these are not whole tracks of version 2")
        data, body = unpacker.unused_data, np.frombuffer(record, np.uint8, offset=20)
        planes = body[: 8 * t * n].reshape(4, 2, t, n).astype(np.uint32)
        zigzag = planes[0] | planes[1] << 8 | planes[2] << 16 | planes[3] << 24
        steps = (zigzag >> 1).astype(np.int32) ^ -(zigzag & 1).astype(np.int32)
        certainty = body[8 * t * n :].reshape(2, t, n).cumsum(axis=1, dtype=np.uint8)
        found["anchors"].append(np.int32(anchor))
        positions = steps.cumsum(axis=1, dtype=np.int32) / np.float32(units)
        found["positions"].append(np.moveaxis(positions.astype(np.float32), 0, -1))
        found["visibility"].append(certainty[0])
        found["confidence"].append(certainty[1])
    return {name: np.stack(values) for name, values in found.items()}


if __name__ == "__main__":
    for clip in read_shard(sys.argv[1]):
        print(
            clip["key"], f"{len(clip['jpegs'])} frames, tracks {clip['tracks']['positions'].shape}"
        )
