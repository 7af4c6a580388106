"""Videos → clips: windows that lie end to end within each shot, all videos at once."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import FrameSettings

PLANNED_CLIPS = pa.schema(
    [("key", pa.string()), ("video", pa.int32()), ("start", pa.int32()), ("frames", pa.int32())]
)
"""Clips before they are made: `frames` frames of row `video` of the videos table from `start` (index within the video) on,
`frames.stride` apart."""

_BLOCK = 1 << 20
_UNREADABLE = re.compile(r"[^A-Za-z0-9]+")


def plan_clips(videos: pa.Table, names: pa.Array, settings: FrameSettings) -> pa.Table:
    """All clips of all videos (table PLANNED_CLIPS), by video and start. `names` are what `video_names` says."""
    video, start, frames = clip_windows(
        videos["frames"].to_numpy(), *_cuts(videos["cuts"]), settings
    )
    keys = [
        pc.binary_join_element_wise(
            names.take(pa.array(video[first : first + _BLOCK])),
            _six_digits(start[first : first + _BLOCK]),
            "-",
        )
        for first in range(0, len(video), _BLOCK)
    ]
    return pa.table(
        [pa.chunked_array(keys, pa.string()), video, start, frames], schema=PLANNED_CLIPS
    )


def clip_windows(
    frames: NDArray[np.int32],
    cuts: NDArray[np.int32],
    cuts_of: NDArray[np.int64],
    settings: FrameSettings,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """(video, start, frames) of every clip, [clips] each.

    frames:  [videos], how many each has
    cuts:    first frames of the shots of all videos but their first shots, one video after the other
    cuts_of: [videos + 1], where each video's cuts begin

    A window of n stored frames takes n x stride source frames. What is left at a shot's end becomes a shorter clip if it
    has `min_frames`.
    """
    videos = np.arange(len(frames))
    shots = np.diff(cuts_of) + 1
    last = np.cumsum(shots) - 1
    begin, end = np.zeros(shots.sum(), np.int64), np.zeros(shots.sum(), np.int64)
    cut = np.arange(len(cuts)) + np.repeat(videos, shots - 1)
    begin[cut + 1], end[cut], end[last] = cuts, cuts, frames
    stored = np.maximum(end - begin, 0) // settings.stride
    windows = stored // settings.clip_frames + (
        stored % settings.clip_frames >= settings.min_frames
    )
    shot = np.repeat(np.arange(len(stored)), windows)
    place = (
        np.arange(len(shot)) - np.repeat(np.cumsum(windows) - windows, windows)
    ) * settings.clip_frames
    video = np.repeat(videos, shots)[shot]
    start = begin[shot] + place * settings.stride
    count = np.minimum(settings.clip_frames, stored[shot] - place)
    return video.astype(np.int32), start.astype(np.int32), count.astype(np.int32)


def video_names(videos: pa.Table) -> pa.Array:
    """What the keys of each video's clips begin with. A key is readable, unique, and free of the characters that tar readers give
    a meaning to."""
    pairs = zip(videos["source"].to_pylist(), videos["video_id"].to_pylist(), strict=True)
    return pa.array([_video_name(source, video_id) for source, video_id in pairs], pa.string())


def videos_of(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """The `video_names` of the videos that clips are of."""
    return pc.replace_substring_regex(keys, "-[0-9]+$", "")


def _video_name(source: str, video_id: str) -> str:
    readable = _UNREADABLE.sub("_", video_id).strip("_")[-32:]
    return f"{source}-{readable}-{hashlib.blake2b(video_id.encode(), digest_size=8).hexdigest()}"


def _six_digits(numbers: NDArray[np.int32]) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 6, "0")


def _cuts(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The values of a column of lists in one row, and where each list begins in it."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return pc.list_flatten(column).to_numpy(), np.concatenate(
        [[0], np.cumsum(lengths, dtype=np.int64)]
    )
