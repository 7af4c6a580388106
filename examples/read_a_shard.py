"""Read a shard without pretrack: python examples/read_a_shard.py SHARD.tar"""

import json
import struct
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard


def read_shard(path: str) -> Iterator[dict[str, Any]]:
    """Yield each clip of a shard: its key, description, JPEG frames (bytes) and tracks (arrays)."""
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            # Members of a clip come in this order: description, tracks, frames, optional others.
            if kind == "json":
                clip = {"key": key, "info": json.loads(data), "jpegs": []}
                if clip["info"]["format"] != 1:
                    raise ValueError(f"{key} has format {clip['info']['format']}, not format 1")
            elif kind == "tracks.zst":
                clip["tracks"] = read_tracks(data)
            elif kind.endswith(".jpg"):
                clip["jpegs"].append(data)
                if len(clip["jpegs"]) == len(clip["info"]["frame_numbers"]):
                    yield clip


def read_tracks(data: bytes) -> dict[str, np.ndarray]:
    """Return anchors [A], positions [A, T, N, 2] (pixels), visibility and confidence [A, T, N]."""
    names = ("anchors", "positions", "visibility", "confidence")
    rows: list[tuple[Any, ...]] = []
    while data:  # one zstandard frame per anchor
        # The size is checked before unpacking, because a damaged file may claim any size.
        if not 0 <= zstandard.frame_content_size(data) <= 1 << 30:
            raise ValueError("these tracks are too large, or do not declare their size")
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        record, data = unpacker.decompress(data), unpacker.unused_data
        header = record[:20].ljust(20, b"\0")
        magic, version, units, anchor, t, n = struct.unpack("<4sHHiII", header)
        whole = unpacker.eof and units > 0 and len(record) == 20 + 10 * t * n
        if not whole or (magic, version) != (b"PTRK", 2):
            raise ValueError("these are not whole tracks of version 2")
        body = np.frombuffer(record, np.uint8, offset=20)
        # Positions: four planes of bytes → zigzag-coded steps over time → sums, in 1/units pixel.
        planes = body[: 8 * t * n].reshape(4, 2, t, n).astype(np.uint32)
        zigzag = planes[0] | planes[1] << 8 | planes[2] << 16 | planes[3] << 24
        steps = (zigzag >> 1).astype(np.int32) ^ -(zigzag & 1).astype(np.int32)
        positions = steps.cumsum(axis=1, dtype=np.int32) / np.float32(units)
        positions = np.moveaxis(positions.astype(np.float32), 0, -1)
        # Visibility and confidence: differences over time, from 0 to 255.
        visibility, confidence = body[8 * t * n :].reshape(2, t, n).cumsum(axis=1, dtype=np.uint8)
        rows.append((np.int32(anchor), positions, visibility, confidence))
    return dict(zip(names, map(np.stack, zip(*rows, strict=True)), strict=True))


if __name__ == "__main__":
    for clip in read_shard(sys.argv[1]):
        shape = clip["tracks"]["positions"].shape
        print(clip["key"], f"{len(clip['jpegs'])} frames, tracks {shape}")
