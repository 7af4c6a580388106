"""Cut videos into clips: consecutive windows within each shot, for all videos at once."""

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
"""Planned clips: `frames` frames of row `video` of the videos table, `frames.stride` apart.

`start` is the index of the first frame within the video."""

_BLOCK = 1 << 20
"""Keys computed at once."""
_UNREADABLE = re.compile(r"[^A-Za-z0-9]+")


def plan_clips(videos: pa.Table, names: pa.Array, settings: FrameSettings) -> pa.Table:
    """Cut all videos into clips (table PLANNED_CLIPS, sorted by video and start).

    `names` are the `video_names` of `videos`.
    """
    video, start, frames = clip_windows(
        videos["frames"].to_numpy(), *_cuts(videos["cuts"]), settings
    )
    # In blocks, since a string array of all keys could exceed Arrow's 2 GiB limit.
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
    """Compute (video, start, frames) of every clip, [clips] each.

    frames:  [videos], number of frames of each video
    cuts:    the frames at which a new shot begins, one video after the other
    cuts_of: [videos + 1], offset of each video's cuts

    A window of n stored frames spans n x stride source frames. The rest of a shot becomes a shorter
    clip if it has at least `min_frames` frames.
    """
    videos = np.arange(len(frames))
    # First frame and end of every shot, [shots]: a cut ends one shot and begins the next.
    shots = np.diff(cuts_of) + 1
    last_shot = np.cumsum(shots) - 1
    begin, end = np.zeros(shots.sum(), np.int64), np.zeros(shots.sum(), np.int64)
    shot_before_cut = np.arange(len(cuts)) + np.repeat(videos, shots - 1)
    begin[shot_before_cut + 1], end[shot_before_cut], end[last_shot] = cuts, cuts, frames
    # Stored frames and windows of every shot.
    stored = np.maximum(end - begin, 0) // settings.stride
    windows = stored // settings.clip_frames + (
        stored % settings.clip_frames >= settings.min_frames
    )
    # Every window's shot, and its first stored frame within the shot, [clips].
    shot = np.repeat(np.arange(len(stored)), windows)
    number_in_shot = np.arange(len(shot)) - np.repeat(np.cumsum(windows) - windows, windows)
    offset = number_in_shot * settings.clip_frames
    video = np.repeat(videos, shots)[shot]
    start = begin[shot] + offset * settings.stride
    count = np.minimum(settings.clip_frames, stored[shot] - offset)
    return video.astype(np.int32), start.astype(np.int32), count.astype(np.int32)


def video_names(videos: pa.Table) -> pa.Array:
    """Return the prefix of the keys of each video's clips.

    Keys are readable, unique, and free of characters that have a meaning to tar readers.
    """
    pairs = zip(videos["source"].to_pylist(), videos["video_id"].to_pylist(), strict=True)
    return pa.array([_video_name(source, video_id) for source, video_id in pairs], pa.string())


def videos_of(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the `video_names` part of clips' keys."""
    # A key ends with "-" and the clip's start; starts may have more than six digits.
    return pc.replace_substring_regex(keys, "-[0-9]+$", "")


def _video_name(source: str, video_id: str) -> str:
    # The hash makes it unique: different ids may look alike once they are made readable.
    readable = _UNREADABLE.sub("_", video_id).strip("_")[-32:]
    return f"{source}-{readable}-{hashlib.blake2b(video_id.encode(), digest_size=8).hexdigest()}"


def _six_digits(numbers: NDArray[np.int32]) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 6, "0")


def _cuts(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Flatten a column of lists; also return the offset of each list, [videos + 1]."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return pc.list_flatten(column).to_numpy(), np.concatenate(
        [[0], np.cumsum(lengths, dtype=np.int64)]
    )
