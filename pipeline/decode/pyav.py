"""Video files through PyAV: the reference, exact on every file tried, damaged ones included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.failures import DecodeError, Reason

Frame = NDArray[np.uint8]

_SEEK_EARLY_S = (0.0, 2.0, 12.0)


@contextmanager
def open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """The container and its best video stream (the one the `ffmpeg` command would pick). One thread: workers are the parallelism.

    Raises DecodeError if the file is missing, is not a video or has no video stream.
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
    """All frames of a file in order, as `av.VideoFrame`.

    Raises DecodeError if the file cannot be opened or decoding stops with an error midway.
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


def upright(frame: Any) -> Frame:
    """A decoded frame as [H, W, 3] RGB uint8, turned as its rotation metadata asks."""
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns))


def frame_times(times: Sequence[float | None], rate: float) -> tuple[float, ...]:
    """Seconds of every frame. Where the file's own are missing or do not increase, all are counted out at the average rate."""
    if all(t is not None for t in times) and all(
        a < b for a, b in pairwise(t for t in times if t is not None)
    ):
        return tuple(t for t in times if t is not None)
    return tuple(i / rate for i in range(len(times)))


def frames_at(
    path: str,
    timestamps: Sequence[float],
    indices: Sequence[int],
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[Frame]:
    """Frames [H, W, 3] at increasing `indices`, the same as decoding all would give.

    `timestamps` are those of all frames, as a scan found them. Seeks to the key frame before the first index and recognises every
    frame by its time; where that fails (no times, a seek that lands late) the file is decoded from its beginning. `on_frame` is
    called after each decoded frame, wanted or not. Raises DecodeError.
    """
    wanted = list(indices)
    seeks = (_after_seek(path, timestamps, wanted[0], early) for early in _SEEK_EARLY_S)
    for numbered in (*seeks, enumerate(decode(path))):
        for index, frame in numbered:
            on_frame()
            if index > wanted[0]:
                break
            if index == wanted[0]:
                yield upright(frame)
                wanted.pop(0)
                if not wanted:
                    return
    raise DecodeError(
        f"frame {wanted[0]} is gone, which was there when the file was scanned: has the file changed?",
        Reason.VIDEO_CHANGED,
    )


def _after_seek(
    path: str, timestamps: Sequence[float], first: int, early: float
) -> Iterator[tuple[int, Any]]:
    """Frames from a key frame before `first` on, with their index in the file; up to the first whose time is not known.

    The seek aims `early` seconds before that frame. Some containers (MPEG-TS) lead to the key frame after the time asked for.

    What comes before the first key frame is not trusted: it may build on frames that the seek jumped over.
    """
    position = {time: index for index, time in enumerate(timestamps)}
    key_seen = False
    with open_video(path) as (container, stream):
        try:
            container.seek(
                round(max(0.0, timestamps[first] - early) / stream.time_base), stream=stream
            )
            for frame in container.decode(stream):
                key_seen = key_seen or frame.key_frame
                if frame.time not in position:
                    return
                if key_seen:
                    yield position[frame.time], frame
        except av.FFmpegError:
            return  # decoding from the beginning gets there, or says what is wrong


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
