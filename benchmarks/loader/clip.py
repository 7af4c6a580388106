"""A clip as every reader of the comparison returns it, and how it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.real_clips import ClipsOnDisk
from shards import jpeg
from shards.codec import decode_frames
from shards.geometry import FrameTransform, inside
from trainer.data.augment import decode_and_transform

BATCH, SIZE = 8, 224

LoadedClip = dict[str, Any]
"""A clip as every reader returns it: `frames` [4, 3, S, S] uint8, `positions` [4, N, 2], and
`visibility`, `confidence` and `inside` [4, N]."""


Reader = Callable[[ClipsOnDisk, int], Iterator[Any]]
"""(clips, processes) → batches."""


def load_clip(images: list[bytes], packed: bytes, frame_indices: list[int]) -> LoadedClip:
    """Decode a clip's JPEGs and tracks, as every reader does."""
    width, height = jpeg.size(images[0])
    into = np.empty((4, 3, SIZE, SIZE), np.uint8)
    frames = decode_and_transform(
        images,
        [FrameTransform.whole(width, height, SIZE, SIZE)] * 4,
        size=(width, height),
        reduce=False,
        into=into,
    )
    return {"frames": torch.from_numpy(frames)} | load_tracks(packed, frame_indices, width, height)


def load_tracks(packed: bytes, frame_indices: list[int], width: int, height: int) -> LoadedClip:
    """Decode a clip's tracks, in pixels of the resized frames."""
    stored, visibility, confidence = decode_frames(packed, 0, frame_indices)
    positions = FrameTransform.whole(width, height, SIZE, SIZE).points(stored)
    return {
        "positions": positions,
        "visibility": visibility.astype(np.float32) / 255,
        "confidence": confidence.astype(np.float32) / 255,
        "inside": inside(positions, SIZE, SIZE),
    }
