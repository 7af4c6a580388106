"""Read video files with PyAV: the reference, exact on every file tried, damaged ones included."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from pipeline.decode.frame_format import ONE_THREAD, FrameFormat, progressive
from pipeline.decode.ledger import Ledger
from pipeline.failures import DecodeError, Reason

_SEEK_EARLY_S = (0.0, 2.0, 12.0)
"""Seconds before the wanted key frame at which seeks aim, in the order in which they are tried."""
_LEAST_SKIPPED = 50
"""Shorter gaps between wanted frames are decoded; longer ones skipped by opening the file again."""


@contextmanager
def open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """Open a video file: yield its container and its best video stream.

    The best stream is the one that libavformat ranks first (av_find_best_stream). Decoding uses one
    thread, because workers are the parallelism. Raises DecodeError if the file is missing, is not a
    video or has no video stream.
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
        if stream.disposition & Disposition.attached_pic:
            raise DecodeError(
                "the file has no video stream, only a cover picture", Reason.NO_VIDEO_STREAM
            )
        stream.codec_context.thread_count = 1
        yield container, stream


def packets(
    container: Any, stream: Any, on_error: Callable[[str], None] = lambda _: None
) -> Iterator[Any]:
    """Yield the packets of a stream; where reading fails, call `on_error` and end.

    The last packet is empty: it makes the decoder hand over the frames that it still holds.
    """
    try:
        yield from container.demux(stream)
    except av.FFmpegError as error:
        on_error(_reason(error))
        last = av.Packet()
        last.stream = stream
        yield last


def decode(
    stream_packets: Iterator[Any], on_error: Callable[[str], None] = lambda _: None
) -> Iterator[Any]:
    """Yield the frames of packets in the order in which they are shown, as `av.VideoFrame`.

    A packet that cannot be decoded is skipped, and `on_error` is called with FFmpeg's words.
    """
    for packet in stream_packets:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            on_error(_reason(error))
            continue
        yield from frames


def rgb(frame: Any, described: FrameFormat, deinterlace: bool) -> NDArray[np.uint8]:
    """Convert a decoded frame to [H, W, 3] RGB uint8, upright."""
    if deinterlace:
        frame = progressive(frame)
    return described.orientation.apply(frame.to_ndarray(format="rgb24", threads=ONE_THREAD))


def frame_times(times: Sequence[float | None], rate: float) -> tuple[float, ...]:
    """Return the time of every frame in seconds from the first.

    If any of the file's own times is missing or they do not increase, frame i gets i / rate
    instead.
    """
    present = [time for time in times if time is not None]
    if len(present) == len(times) and all(a < b for a, b in pairwise(present)):
        return tuple(time - present[0] for time in present)
    return tuple(index / rate for index in range(len(times)))


def frames_at(
    path: str,
    ledger: Ledger,
    indices: Sequence[int],
    *,
    deinterlace: bool = True,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] at increasing `indices`, each proven by its ledger entry.

    One pass over the file: frames between two wanted ones are decoded, except where a later key
    frame lets decoding skip them. `on_frame` is called after each decoded frame, wanted or not,
    and for each packet that is skipped.
    Raises DecodeError if the file cannot be read, or lacks a frame that the scan entered.
    """
    remaining = list(indices)
    skips = True
    while remaining:
        missing = remaining[0]
        # Skip to the key frame before the next wanted frame. What is found so is checked; if it is
        # wrong or missing, decode the file from its start, where no skip can mislead, and skip no
        # more: one file is then decoded twice at most.
        ways = [_from_start(path)]
        if skips and (key_frame := ledger.key_before(missing)):
            ways.insert(0, _from_key_frame(path, ledger, key_frame, on_frame))
        for way in ways:
            with closing(way):
                for index, frame in way:
                    on_frame()
                    if index < remaining[0]:
                        continue
                    if index > remaining[0] or not ledger.matches(index, frame):
                        break
                    yield rgb(frame, ledger.format_of(index), deinterlace)
                    remaining.pop(0)
                    if not remaining:
                        break
                    if skips and ledger.key_before(remaining[0]) - index > _LEAST_SKIPPED:
                        break
            if not remaining or remaining[0] != missing:
                break
            skips = False
        else:
            raise DecodeError(
                f"frame {missing} is not the one that was there when the file was scanned: "
                "the file has changed; if its size and time are the same, 'touch' it",
                Reason.VIDEO_CHANGED,
            )


def _from_start(path: str) -> Generator[tuple[int, Any]]:
    """Yield (index, frame) of all frames of a file."""
    with open_video(path) as (container, stream):
        yield from enumerate(decode(packets(container, stream)))


def _from_key_frame(
    path: str, ledger: Ledger, key_frame: int, on_packet: Callable[[], None]
) -> Generator[tuple[int, Any]]:
    """Yield (index, frame) from a key frame on; nothing if it cannot be reached."""
    if ledger.seekable:
        for early in _SEEK_EARLY_S:
            reached = False
            for index, frame in _after_seek(path, ledger, key_frame, early):
                if not reached and index > key_frame:  # the seek landed late
                    break
                if index >= key_frame:
                    reached = True
                    yield index, frame
            if reached:
                return
    else:
        yield from _after_packets(path, ledger, key_frame, on_packet)


def _after_seek(
    path: str, ledger: Ledger, key_frame: int, early: float
) -> Iterator[tuple[int, Any]]:
    """Seek to a key frame and yield (index, frame) from there on; times identify the frames.

    The seek aims `early` seconds before that frame: some containers (MPEG-TS) lead to the key frame
    *after* the requested time. Ends at the first frame whose time is not in the ledger.
    """
    target = int(ledger.times[key_frame]) - round(Fraction(early) / ledger.time_base)
    key_seen = False
    with open_video(path) as (container, stream):
        try:
            container.seek(max(target, int(ledger.times[0])), stream=stream)
        except av.FFmpegError:
            return
        for frame in decode(packets(container, stream)):
            index = int(np.searchsorted(ledger.times, frame.pts)) if frame.pts is not None else -1
            if not 0 <= index < len(ledger) or ledger.times[index] != frame.pts:
                return
            # Before the first key frame, frames may refer to ones that the seek skipped.
            key_seen = key_seen or frame.key_frame
            if key_seen:
                yield index, frame


def _after_packets(
    path: str, ledger: Ledger, key_frame: int, on_packet: Callable[[], None]
) -> Iterator[tuple[int, Any]]:
    """Read packets without decoding them up to a key frame's, and yield (index, frame) from it on.

    For files whose times are missing, repeat or jump back, where a seek by time may end anywhere.
    Reading packets costs a hundredth of decoding them.
    """
    skipped = ledger.key_frames_before(key_frame)
    with open_video(path) as (container, stream):
        index = -1
        for frame in decode(_from_key_packet(packets(container, stream), skipped, on_packet)):
            # Frames shown before the key frame but coded after it refer to ones that were skipped.
            if index < 0 and not frame.key_frame:
                continue
            index = key_frame if index < 0 else index + 1
            yield index, frame


def _from_key_packet(
    stream_packets: Iterator[Any], skipped: int, on_packet: Callable[[], None]
) -> Iterator[Any]:
    """Yield packets from key packet number `skipped` on; call `on_packet` for those before it."""
    keys = 0
    for packet in stream_packets:
        if packet.is_keyframe:
            keys += 1
        if keys > skipped:
            yield packet
        else:
            on_packet()


def _reason(error: Exception) -> str:
    """Return FFmpeg's own words for an error, without the path and the error number."""
    return getattr(error, "strerror", None) or str(error)
