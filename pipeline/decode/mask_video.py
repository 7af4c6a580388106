"""Read masks that are the frames of a grey video."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.decode.frame_format import ONE_THREAD
from pipeline.decode.pyav import decode, open_video, packets
from pipeline.failures import DecodeError, Reason

_SEEK_EARLY_S = 1.0
"""Seconds before the first wanted frame at which a seek aims."""


def grey_frames(
    path: str, times: Sequence[float], on_frame: Callable[[], None] = lambda: None
) -> Iterator[NDArray[np.uint8] | DecodeError]:
    """Yield for each of increasing `times` the nearest frame in grey, [H, W].

    Times are in seconds from the first frame. Yields an error for a time that is more than a
    frame's duration after the last frame. `on_frame` is called after each decoded frame. Raises
    DecodeError if the file is missing or cannot be read.
    """
    start = max(times[0] - _SEEK_EARLY_S, 0.0)
    # A seek may lead too far in a file with a damaged index.
    for begin in dict.fromkeys((start, 0.0)):
        with closing(_timed_frames(path, begin, on_frame)) as frames:
            first = next(frames, None)
            if first and (first[0] <= times[0] or not begin):
                yield from _nearest(first, frames, times)
                return
    raise DecodeError("the video has no frames", Reason.MASK_UNKNOWN)


def _nearest(
    first: tuple[float, Any], frames: Iterator[tuple[float, Any]], times: Sequence[float]
) -> Iterator[NDArray[np.uint8] | DecodeError]:
    """Yield the frame nearest to each time, of `first` and the `frames` that follow it."""
    duration = 0.0
    before, after = first, next(frames, None)
    for time in times:
        while after and after[0] < time:
            duration = after[0] - before[0]
            before, after = after, next(frames, None)
        after_is_nearer = after is not None and time - before[0] >= after[0] - time
        nearest = after if after and after_is_nearer else before
        if time > nearest[0] + max(duration, 1e-3):
            yield DecodeError(
                f"the video ends at {before[0]:.2f} s, before {time:.2f} s", Reason.MASK_UNKNOWN
            )
        else:
            yield nearest[1].to_ndarray(format="gray", threads=ONE_THREAD)


def _timed_frames(
    path: str, begin: float, on_frame: Callable[[], None]
) -> Generator[tuple[float, Any]]:
    """Yield (seconds from the first frame, frame) from a key frame at or before `begin` on."""
    with open_video(path) as (container, stream):
        origin = stream.start_time or 0
        if begin:
            with suppress(av.FFmpegError):
                container.seek(origin + int(begin / stream.time_base), stream=stream)
        for frame in decode(packets(container, stream)):
            on_frame()
            if frame.pts is not None:
                yield float((frame.pts - origin) * stream.time_base), frame
