"""The messages between a decoder process and its parent.

The parent sends one request and then receives answers: any number of `Progress`, `Result` and
`ItemFailed`, ended by one `RequestDone`, `RequestFailed` or `DeviceMissing`. Every answer restarts
the parent's stall clock. One request is in flight at a time. Messages are pickled: both ends run
the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.rows import DepthEncoding
from pipeline.decode.frame_format import FrameFormat
from pipeline.decode.images import MAX_MEGAPIXELS
from pipeline.decode.video import Decoder
from pipeline.failures import Reason
from pipeline.sources.picture_kinds import Channels
from shards.geometry import stored_size


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """Decode a video file from end to end. Result: one `Scan`."""

    path: str
    shot_cuts: bool


@dataclass(frozen=True, slots=True)
class StoredForm:
    """How frames are stored: their size, and the treatment of their pixels.

    short_side, size: see `stored_transform`
    square_pixels:    resample pixels that are not square
    deinterlace:      interpolate one field of interlaced frames
    max_megapixels:   pixels of the largest image file that is read, in millions
    """

    short_side: int
    size: tuple[int, int] | None = None
    square_pixels: bool = True
    deinterlace: bool = True
    max_megapixels: float = MAX_MEGAPIXELS

    def size_of(self, described: FrameFormat) -> tuple[int, int]:
        """Return the (width, height) at which frames of a video file are stored."""
        # Pixels become square in the same step in which the frame is shrunk, so that it is
        # resampled once.
        shown = described.display_size if self.square_pixels else described.upright_size
        return self.size or stored_size(*shown, self.short_side)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest:
    """Read frames of a video file at increasing `indices`. Result per frame: `StoredFrame`.

    `ledger` is the packed one of the file's scan.
    """

    path: str
    decoder: Decoder
    ledger: bytes
    indices: tuple[int, ...]
    form: StoredForm


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrame:
    """A frame [h, w, 3] resized as it is stored, and what it was in the file.

    source_size: (width, height)
    channels:    of an image file
    left_out:    what of an image file is not in its pixels
    """

    pixels: NDArray[np.uint8]
    source_size: tuple[int, int]
    channels: Channels = "colour"
    left_out: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeRequest:
    """Read and encode clips of a video file on a device, each given by the indices of its frames.

    Answer per clip: `Result` with an `EncodedClip`, or `ItemFailed` if the device cannot decode the
    clip, or not prove its frames. `ledger` is the packed one of the file's scan.
    """

    path: str
    device: str
    ledger: bytes
    clips: tuple[tuple[int, ...], ...]
    form: StoredForm
    jpeg_quality: int


@dataclass(frozen=True, slots=True, eq=False)
class EncodedClip:
    """The frames of a clip as they are stored, their size, and that of the frames in the file.

    size, source_size: (width, height)
    """

    jpegs: tuple[bytes, ...]
    size: tuple[int, int]
    source_size: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesRequest:
    """Read image files. Answer per image: `Result` with a `StoredFrame`, or `ItemFailed`."""

    root: str
    names: tuple[str, ...]
    form: StoredForm


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthFile:
    """The depth map of one frame; see `DepthFiles`. `mask` is "" for none."""

    name: str
    encoding: DepthEncoding
    scale: float
    mask: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MapsRequest:
    """Read depth maps and masks of frames of one clip, each a file of a `source_size`.

    depths, masks: one per frame, or (). A mask is the name of a file, "" for none
    source_sizes:  (width, height) of each frame in the source
    stored_size:   (width, height) of the stored frames

    Answer per depth map, then per mask: `Result` with an array [H, W] as stored, or `ItemFailed`.
    """

    root: str
    depths: tuple[DepthFile, ...]
    masks: tuple[str, ...]
    source_sizes: tuple[tuple[int, int], ...]
    stored_size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """Render those files of a video of a dataset that are not there yet. No results."""

    dataset: str
    root: str
    names: tuple[str, ...]


Request = ScanRequest | VideoRequest | EncodeRequest | ImagesRequest | MapsRequest | RenderRequest


@dataclass(frozen=True, slots=True)
class Progress:
    """The decoder is alive: it decoded or rendered a frame that is not a result itself."""


@dataclass(frozen=True, slots=True)
class Result:
    """One result of the request."""

    value: Any


@dataclass(frozen=True, slots=True)
class ItemFailed:
    """One image, or clip, cannot be used; the request continues with the next."""

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


@dataclass(frozen=True, slots=True)
class DeviceMissing:
    """This machine lacks what the request needs: every other request of its kind would fail."""

    message: str


Answer = Progress | Result | ItemFailed | RequestDone | RequestFailed | DeviceMissing
