"""Read a video file: scan it once from end to end, then read frames by index.

The scan is always done with PyAV, whatever `frames.decoder` says: it alone decides how many frames
there are and when each is shown. The decoder then reads the clips; where it disagrees with the
scan, the file is refused.

The modules `pyav`, `decord` and `torchcodec` implement one function with the same meaning,
`frames_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.decode import decord as with_decord
from pipeline.decode import pyav as with_pyav
from pipeline.decode import torchcodec as with_torchcodec
from pipeline.decode.shots import ShotDetector
from pipeline.sources.video import Scan
from shards.errors import PretrackError, first_line

Decoder = Literal["pyav", "decord", "torchcodec"]

_FALLBACK_RATE = 25
"""Frames per second assumed for a file that states none; only used if it has no usable times."""


def check_decoder(decoder: Decoder) -> None:
    """Raise PretrackError, saying what to install, if a decoder cannot be loaded here."""
    try:
        import_module(
            {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec.decoders"}[decoder]
        )
    except (ImportError, RuntimeError, OSError) as error:
        fix = {
            "pyav": "pip install 'pretrack[pipeline]'",
            "decord": "pip install 'pretrack[pipeline]'",
            "torchcodec": "pip install 'pretrack[torchcodec]' "
            "and FFmpeg from the system's packages",
        }[decoder]
        raise PretrackError(
            f"frames.decoder {decoder} cannot be loaded here ({first_line(error)}): {fix}, "
            "or choose pyav"
        ) from error


def scan(path: str, shot_cuts: bool, on_frame: Callable[[], None] = lambda: None) -> Scan:
    """Decode a file from end to end: true frame count, times, displayed size, shot cuts if wanted.

    `on_frame` is called after each frame. Raises DecodeError if the file cannot be read to its end.
    """
    times: list[float | None] = []
    shots = ShotDetector() if shot_cuts else None
    with with_pyav.open_video(path) as (_, stream):
        rate = float(stream.average_rate or stream.guessed_rate or _FALLBACK_RATE)
    for frame in with_pyav.decode(path):
        times.append(frame.time)
        if shots:
            shots.add(frame)
        # Width and height are those of the last frame, after its rotation by a quarter turn or not.
        on_its_side = round(frame.rotation / 90) % 2
        width, height = (frame.height, frame.width) if on_its_side else (frame.width, frame.height)
        on_frame()
    return Scan(
        width=width,
        height=height,
        timestamps=with_pyav.frame_times(times, rate),
        cuts=tuple(shots.cuts()) if shots else (),
    )


def read_frames(
    path: str,
    decoder: Decoder,
    timestamps: Sequence[float],
    indices: Sequence[int],
    *,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] RGB uint8 at increasing `indices`, upright, as the scan counted.

    `timestamps` are those of all frames, from the scan. `on_frame` is called for each frame that
    PyAV decodes on the way to the wanted ones. Raises DecodeError if the file cannot be read or is
    not the file that was scanned.
    """
    if decoder == "decord":
        return with_decord.frames_at(path, timestamps, indices)
    if decoder == "torchcodec":
        return with_torchcodec.frames_at(path, timestamps, indices)
    return with_pyav.frames_at(path, timestamps, indices, on_frame)
