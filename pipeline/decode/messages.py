"""The messages between a decoder process and its parent.

The parent sends one request and then receives answers: any number of `Progress`, `Result` and
`ItemFailed`, ended by one `RequestDone` or `RequestFailed`. Every answer restarts the parent's
stall clock. One request is in flight at a time. Messages are pickled: both ends run the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.decode.video import Decoder
from pipeline.failures import Reason
from shards.geometry import FrameTransform


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """Decode a video file from end to end. Result: one `Scan`."""

    path: str
    shot_cuts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """Read frames of a video file at increasing `indices`. Result per frame: [h, w, 3], resized.

    `timestamps` are those of all frames of the file, from its scan.
    """

    path: str
    decoder: Decoder
    timestamps: tuple[float, ...]
    indices: tuple[int, ...]
    transform: FrameTransform


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesRequest:
    """Read image files. Answer per image: `Result` or `ItemFailed`.

    A result is (frame [h, w, 3], (width, height)): the frame resized as it is stored, and the size
    that it has in the file.
    """

    root: str
    names: tuple[str, ...]
    short_side: int
    size: tuple[int, int] | None


Request = ScanRequest | VideoRequest | ImagesRequest


@dataclass(frozen=True, slots=True)
class Progress:
    """The decoder is alive: it decoded a frame that is not a result itself."""


@dataclass(frozen=True, slots=True)
class Result:
    """One of the things asked for."""

    value: Any


@dataclass(frozen=True, slots=True)
class ItemFailed:
    """One image cannot be used; the request continues with the next."""

    message: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class RequestDone:
    """All results were sent."""


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The request as a whole failed; the process is ready for the next."""

    message: str
    reason: Reason


Answer = Progress | Result | ItemFailed | RequestDone | RequestFailed
