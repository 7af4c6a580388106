"""Read video files with PyAV: the reference, exact on every file tried, damaged ones included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.failures import DecodeError, Reason

_SEEK_EARLY_S = (0.0, 2.0, 12.0)
"""Seconds before the wanted frame at which seeks aim, in the order in which they are tried."""


@contextmanager
def open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """Open a video file: yield its container and its best video stream.

    The best stream is the one that the `ffmpeg` command would pick. Decoding uses one thread,
    because workers are the parallelism. Raises DecodeError if the file is missing, is not a video
    or has no video stream.
    """
    try:
        container = av.open(path)
    except FileNotFoundError as error:
        raise DecodeError("the file is gone", Reason.MISSING_VIDEO) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"the file cannot be opened as a video ({_reason(error)})") from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise DecodeError("the file has no video stream", Reason.NO_VIDEO_STREAM)
        stream.codec_context.thread_count = 1
        yield container, stream


def decode(path: str) -> Iterator[Any]:
    """Yield all frames of a file in order, as `av.VideoFrame`.

    Raises DecodeError if the file cannot be opened, decoding stops with an error midway, or the
    file holds no frame.
    """
    count = 0
    with open_video(path) as (container, stream):
        try:
            for frame in container.decode(stream):
                yield frame
                count += 1
        except av.FFmpegError as error:
            raise DecodeError(
                f"decoding stopped after {count} frames ({_reason(error)})", Reason.DAMAGED_VIDEO
            ) from error
    if count == 0:
        raise DecodeError("no frame could be decoded", Reason.NO_FRAMES)


def upright(frame: Any) -> NDArray[np.uint8]:
    """Convert a decoded frame to [H, W, 3] RGB uint8, rotated as its metadata asks."""
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))


def frame_times(times: Sequence[float | None], rate: float) -> tuple[float, ...]:
    """Return the time of every frame in seconds.

    If any of the file's own times is missing or they do not increase, frame i gets i / rate
    instead.
    """
    present = tuple(time for time in times if time is not None)
    if len(present) == len(times) and all(a < b for a, b in pairwise(present)):
        return present
    return tuple(index / rate for index in range(len(times)))


def frames_at(
    path: str,
    timestamps: Sequence[float],
    indices: Sequence[int],
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] at increasing `indices`, identical to decoding the whole file.

    `timestamps` are those of all frames, from the file's scan. `on_frame` is called after each
    decoded frame, wanted or not. Raises DecodeError if the file cannot be read, or lacks a frame
    that the scan counted.
    """
    wanted = list(indices)
    # Try to seek to a key frame before the first wanted frame; frames are recognised by their time.
    # A seek fails if the file has no times or the seek lands late. The last attempt decodes the
    # file from its beginning, where the index of a frame is its count. Each attempt continues with
    # the frames that the earlier ones did not find.
    seeks = (_after_seek(path, timestamps, wanted[0], early) for early in _SEEK_EARLY_S)
    for attempt in (*seeks, enumerate(decode(path))):
        for index, frame in attempt:
            on_frame()
            if index > wanted[0]:  # landed late, or skipped a frame: try the next way
                break
            if index == wanted[0]:
                yield upright(frame)
                wanted.pop(0)
                if not wanted:
                    return
    raise DecodeError(
        f"frame {wanted[0]} is gone, which was there when the file was scanned: "
        "has the file changed?",
        Reason.VIDEO_CHANGED,
    )


def _after_seek(
    path: str, timestamps: Sequence[float], first: int, early: float
) -> Iterator[tuple[int, Any]]:
    """Seek to a key frame before frame `first`, and yield (index in the file, frame) from there on.

    The seek aims `early` seconds before that frame: some containers (MPEG-TS) lead to the key frame
    *after* the requested time. Ends at the first frame whose time is not in `timestamps`, and
    yields nothing if the seek fails.
    """
    index_of = {time: index for index, time in enumerate(timestamps)}
    key_seen = False
    with open_video(path) as (container, stream):
        try:
            container.seek(
                round(max(0.0, timestamps[first] - early) / stream.time_base), stream=stream
            )
            for frame in container.decode(stream):
                key_seen = key_seen or frame.key_frame
                if frame.time not in index_of:
                    return
                # Before the first key frame, frames may refer to ones that the seek skipped.
                if key_seen:
                    yield index_of[frame.time], frame
        except av.FFmpegError:
            return  # decoding from the beginning succeeds, or raises the error that names the cause


def _reason(error: Exception) -> str:
    """Return FFmpeg's own words for an error, without the path and the error number."""
    return getattr(error, "strerror", None) or str(error)
